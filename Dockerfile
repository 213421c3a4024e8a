# docker build -t tsde .
# docker run --rm -v "$PWD:/work" tsde demo --out demo          (add --user "$(id -u):$(id -g)" to own the files)
#
# On Linux the default package index may serve torch with its CUDA libraries, several gigabytes. For a CPU image name
# an index of CPU builds: docker build --build-arg PIP_EXTRA_INDEX_URL=... . (or PIP_INDEX_URL); pip reads both.
FROM python:3.11-slim

ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL

# HOME under /tmp, so that any --user can write the caches of matplotlib and torch.
ENV MLFLOW_DISABLE_TELEMETRY=true \
    GIT_PYTHON_REFRESH=quiet \
    OMP_NUM_THREADS=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp

# The same steps as the Makefile's: torch first, a layer that outlives changes of the code, then the rest.
WORKDIR /src
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY tsde ./tsde
COPY pipelines ./pipelines
RUN pip install --no-cache-dir -c constraints.txt .

RUN useradd --uid 1000 tsde && install -d -o tsde /work
USER tsde
WORKDIR /work
ENTRYPOINT ["tsde"]
