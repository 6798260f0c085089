# Two stages: what is needed to install stays behind in the first.
FROM python:3.12-slim AS build

WORKDIR /build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1

COPY requirements-service.lock ./
RUN python -m venv /opt/holdfast \
    && /opt/holdfast/bin/pip install --quiet --require-hashes -r requirements-service.lock

COPY pyproject.toml README.md LICENSE ./
COPY engine engine
COPY gateway gateway
COPY holdfast holdfast
COPY lua lua
COPY projection projection
COPY reconciler reconciler
RUN /opt/holdfast/bin/pip install --quiet --no-deps --no-build-isolation .

FROM python:3.12-slim

COPY --from=build /opt/holdfast /opt/holdfast
RUN useradd --system --uid 10001 --home-dir /data holdfast \
    && install --directory --owner=holdfast --group=holdfast --mode=0700 /data /archive /index

ENV PATH=/opt/holdfast/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOLDFAST_DATA_DIR=/data \
    HOLDFAST_HOST=0.0.0.0 \
    HOLDFAST_LOG_FORMAT=json
USER holdfast
WORKDIR /data
VOLUME /data
EXPOSE 8080
STOPSIGNAL SIGTERM

HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/livez', timeout=2)"]

# By itself the image runs the whole service on its embedded store in /data. docker-compose.yml runs
# the gateway and the background process from it instead, beside a store of their own.
CMD ["holdfast", "serve"]
