# drloss on CPUs.
#
#     docker build --tag drloss .
#     docker run --rm --shm-size 2g --user "$(id -u):$(id -g)" --volume "$PWD:/work" drloss train --data DATA \
#         --preset laptop --out runs/first
#
# On x86-64 the torch of PyPI brings CUDA's libraries, gigabytes that this image never uses. A base image with Python
# 3.11 or later and a torch for CPUs makes it smaller: --build-arg BASE=...
ARG BASE=python:3.13-slim
FROM ${BASE}

# The losses' C file is compiled on the machine that it runs on, when it is first used.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

COPY . /opt/drloss
RUN python -m pip install --no-cache-dir '/opt/drloss[laptop,onnx]'

# Any user of the host may run it (--user): caches go where everyone may write.
ENV HOME=/tmp
USER nobody
WORKDIR /work
ENTRYPOINT ["drloss"]
CMD ["--help"]
