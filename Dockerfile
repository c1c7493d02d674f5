# One image for every process of AIRI; the command chooses (airi gateway, airi worker, airi up …).
FROM python:3.12-slim AS build
COPY requirements/base.txt /tmp/base.txt
RUN python -m venv /opt/airi \
 && /opt/airi/bin/pip install --no-cache-dir --require-hashes -r /tmp/base.txt
COPY . /src
RUN /opt/airi/bin/pip install --no-cache-dir --no-deps /src

FROM python:3.12-slim
RUN useradd --create-home --uid 10001 airi \
 && install -d -o airi -g airi /var/lib/airi
COPY --from=build /opt/airi /opt/airi
ENV PATH=/opt/airi/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    AIRI_HOME=/var/lib/airi \
    AIRI_HOST=0.0.0.0
USER airi
WORKDIR /var/lib/airi
VOLUME /var/lib/airi
EXPOSE 4000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:4000/readyz', timeout=2)"]
ENTRYPOINT ["airi"]
CMD ["up"]
