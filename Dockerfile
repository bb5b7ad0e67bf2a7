# The image of presenced: built on Debian, run with nothing but the libraries the binary names.
ARG DEBIAN=trixie

FROM debian:${DEBIAN}-slim AS build
WORKDIR /src
# Packages first, so that a change of the sources does not fetch them again.
COPY script/bootstrap script/bootstrap
RUN script/bootstrap build && apt-get clean
COPY . .
RUN script/build && strip -o /presenced build/release/presenced
# The packages whose libraries the binary loads, whatever their versions are called in this release;
# dpkg knows some files by their path from before /lib became a link to /usr/lib.
# No pipe: it would hide a library that belongs to no package, and the image would lack it.
RUN set -eu; ldd /presenced > /libraries; \
    for library in $(sed -n 's|.* => \(/[^ ]*\) .*|\1|p' /libraries); do \
        library=$(realpath "$library"); \
        owner=$(dpkg-query --search "$library" 2>/dev/null \
            || dpkg-query --search "${library#/usr}"); \
        echo "${owner%%:*}" >> /owners; \
    done; \
    sort -u /owners > /packages; test -s /packages

FROM debian:${DEBIAN}-slim
COPY --from=build /packages /tmp/packages
RUN apt-get update \
    && xargs -r apt-get install -y --no-install-recommends < /tmp/packages \
    && rm -rf /tmp/packages /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log
COPY --from=build /presenced /usr/local/bin/presenced
COPY LICENSE /usr/local/share/doc/presenced/LICENSE

# A number, so that Kubernetes can tell that it is not root.
USER 65532:65532
ENV PRESENCED_LISTEN=0.0.0.0:8080,[::]:8080
EXPOSE 8080
STOPSIGNAL SIGTERM
# Asks the process, not the database: an outage of the database restarts nobody.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["/usr/local/bin/presenced", "health"]
ENTRYPOINT ["/usr/local/bin/presenced"]
CMD ["serve"]
