# One image for the gateway and for the simulated engine: `warmroute serve`, `warmroute engine ...`.
#
#   docker build -t warmroute:0.1.0 .
#   docker run --rm -p 8080:8080 warmroute:0.1.0 serve --host 0.0.0.0 --engine http://10.0.0.1:8000
#   docker run --rm warmroute:0.1.0 engine --host 0.0.0.0 --port 8000 --events-port 5557 --replay-port 5567
ARG PYTHON=3.13

FROM python:${PYTHON}-slim-bookworm AS build
# The native core's compiler; its versions are the base image's.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ make && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml CMakeLists.txt constraints.txt README.md LICENSE ./
COPY native native
COPY src src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .
# The environment is made where it will lie, since its scripts name their interpreter.
RUN python -m venv --without-pip /opt/warmroute \
  && pip --python /opt/warmroute/bin/python install --no-cache-dir --compile --constraint constraints.txt \
     "warmroute[kubernetes,redis] @ file://$(ls /wheels/warmroute-*.whl)"

FROM python:${PYTHON}-slim-bookworm
LABEL org.opencontainers.image.title="Warmroute" \
      org.opencontainers.image.description="Routes every LLM request to the engine whose KV cache is already warm for it" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/warmroute /opt/warmroute
ENV PATH=/opt/warmroute/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# By number, so that Kubernetes can see that it is not root. Nothing is written but what a volume takes.
USER 65532:65532
WORKDIR /tmp
EXPOSE 8080 9090
ENTRYPOINT ["warmroute"]
CMD ["serve"]
