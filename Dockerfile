# Images where a Docker daemon is at hand; `cargo xtask images` makes smaller ones without any.
#
#   docker build --target proxy -t registry.example.com/outrigger/proxy:0.1.0 .
#   docker build --target control-plane -t registry.example.com/outrigger/control-plane:0.1.0 .
#   docker build --target simplebank -t registry.example.com/outrigger/simplebank:0.1.0 .

FROM rust:1.95-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends cmake && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# Each by itself, so that it has no features that only others ask for.
RUN cargo build --locked --release --package outrigger-proxy
RUN cargo build --locked --release --package outrigger-control-plane
RUN cargo build --locked --release --package simplebank

FROM debian:bookworm-slim AS base
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*

FROM base AS proxy
RUN apt-get update && apt-get install --yes --no-install-recommends nftables iptables && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/outrigger-proxy /usr/bin/
USER 4740:4740
ENTRYPOINT ["/usr/bin/outrigger-proxy"]

FROM base AS control-plane
COPY --from=build /src/target/release/outrigger-control-plane /usr/bin/
USER 4780:4780
ENTRYPOINT ["/usr/bin/outrigger-control-plane"]

FROM base AS simplebank
COPY --from=build /src/target/release/simplebank /usr/bin/
USER 1000:1000
ENTRYPOINT ["/usr/bin/simplebank"]
