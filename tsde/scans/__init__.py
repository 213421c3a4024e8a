"""Recurrences over the rows of a context as one differentiable operation each, with hand-written gradients.

Over a long scan, automatic differentiation spends more time on bookkeeping than on arithmetic. Each file explains the
mathematics of one recurrence; its eager twin, differentiated automatically, is the oracle of its test.
"""
