"""The application: the command line, one module per stage, tracking. It imports `tsde`, never the reverse."""
