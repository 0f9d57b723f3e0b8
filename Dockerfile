# qtool on CPU-only torch:
#   docker build -t qtool .
#   docker run --rm -v "$PWD:/data" qtool ptq --recipe recipe.yaml
FROM python:3.12-slim
COPY pyproject.toml constraints.txt README.md LICENSE /src/
COPY qtool /src/qtool
COPY configs /src/configs
RUN pip install --no-cache-dir -c /src/constraints.txt \
        --extra-index-url https://download.pytorch.org/whl/cpu torch \
    && pip install --no-cache-dir -c /src/constraints.txt /src \
    && rm -rf /src
RUN useradd --create-home user
USER user
WORKDIR /data
ENTRYPOINT ["qtool"]
