# Every stage of Tartan in one image: `tartan ingest`, `tartan streams`, `tartan projections`, `tartan gateway`.

FROM python:3.11-slim AS build

RUN python -m venv /opt/tartan
ENV PATH=/opt/tartan/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# Before the code, so that a change of the code does not install everything again.
# plaid-python alone is published as source only; it is pure Python and needs no compiler.
COPY requirements/runtime.txt /build/runtime.txt
RUN pip install --require-hashes --only-binary :all: --no-binary plaid-python -r /build/runtime.txt

RUN printf '#!/opt/tartan/bin/python\nfrom cli.main import main\n\nmain()\n' > /opt/tartan/bin/tartan \
    && chmod 755 /opt/tartan/bin/tartan

FROM python:3.11-slim

RUN useradd --system --create-home --home-dir /var/lib/tartan --shell /usr/sbin/nologin tartan

COPY --from=build /opt/tartan /opt/tartan
COPY schemas/ /app/schemas/
COPY runtime/ /app/runtime/
COPY ingest/ /app/ingest/
COPY streams/ /app/streams/
COPY projections/ /app/projections/
COPY gateway/ /app/gateway/
COPY sandbox/ /app/sandbox/
COPY cli/ /app/cli/

ENV PATH=/opt/tartan/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN python -m compileall -q /app

USER tartan
WORKDIR /var/lib/tartan

# Two processes of a stage must not share an id, so each container has its own unless it is told another.
ENTRYPOINT ["/bin/sh", "-c", "export TARTAN_INSTANCE_ID=\"${TARTAN_INSTANCE_ID:-$(cat /proc/sys/kernel/hostname)}\"; exec \"$@\"", "tartan"]
CMD ["tartan", "--help"]
