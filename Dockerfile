# syntax=docker/dockerfile:1

# kube-coders as one static file in an image with nothing else in it but the system's
# certificates. For amd64 and arm64: each is built on its own kind of machine, or emulated.

# The builder's version is pinned here and nowhere else.
FROM rust:1.95.0-slim-bookworm AS build
ARG TARGETARCH
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY flatbuffers flatbuffers
COPY crates/check crates/check
COPY crates/identity crates/identity
COPY crates/runner crates/runner
# Members of the workspace that are not built here. Cargo needs the manifest of each, and a
# source file that the manifest stands for.
COPY crates/test-support/Cargo.toml crates/test-support/
COPY crates/test-support/src/lib.rs crates/test-support/src/
COPY tests/house/Cargo.toml tests/house/
COPY tests/house/src/lib.rs tests/house/src/
# The route that `check --migrate` prints.
COPY apisix-conf/standalone/apisix.yaml apisix-conf/standalone/
COPY src src

# Static, with the target named: without --target the flag would hold for macros and build
# scripts too, which the compiler has to load. Random numbers are the kernel's by its call:
# a static program does not find glibc's, and /dev/urandom need not be there.
RUN --mount=type=cache,id=kube-coders-registry,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,id=kube-coders-target-${TARGETARCH},target=/src/target,sharing=locked \
    set -eu; \
    target="$(rustc -vV | sed -n 's/^host: //p')"; \
    RUSTFLAGS='-C target-feature=+crt-static --cfg getrandom_backend="linux_getrandom"' \
        cargo build --release --locked --target "$target" --bin kube-coders; \
    install -D -m 0755 "target/$target/release/kube-coders" /image/opt/kube-coders/kube-coders; \
    if readelf --dynamic /image/opt/kube-coders/kube-coders | grep -q NEEDED; then \
        echo "target/$target/release/kube-coders needs shared libraries, and the image has none" >&2; \
        exit 1; \
    fi; \
    /image/opt/kube-coders/kube-coders --version

# 636 is the user of APISIX's own image, so that the gateway may use the socket as it is.
RUN set -eu; \
    install -D -m 0644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt; \
    printf '%s\n' 'root:x:0:0:root:/:/nonexistent' 'kube-coders:x:636:636:kube-coders:/:/nonexistent' \
        > /image/etc/passwd; \
    printf '%s\n' 'root:x:0:' 'kube-coders:x:636:' > /image/etc/group; \
    install -d -m 0770 /socket/kube-coders

FROM scratch
COPY --from=build /image/ /
# The folder of the socket and its key. A volume that is mounted here brings its own owner.
COPY --from=build --chown=636:636 /socket/ /run/
LABEL org.opencontainers.image.title="kube-coders" \
      org.opencontainers.image.description="An APISIX external plugin runner that sends each user to their own workspace" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 636:636
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s --retries=3 \
    CMD ["/opt/kube-coders/kube-coders", "health"]
ENTRYPOINT ["/opt/kube-coders/kube-coders"]
CMD ["run"]
