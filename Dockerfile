# A static binary, an account without rights, certificates for databases that are reached by TLS, and time zones for logs.
#
#   docker build -t fastpubsub .
#   docker run --rm -e FASTPUBSUB_DATABASE_URL=... fastpubsub db-migrate
#   docker run -p 8000:8000 -e FASTPUBSUB_DATABASE_URL=... fastpubsub server

FROM --platform=$BUILDPLATFORM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG TARGETOS TARGETARCH
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -ldflags='-s -w' -o /out/fastpubsub ./cmd/fastpubsub

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /usr/local/go/lib/time/zoneinfo.zip /usr/local/go/lib/time/
ENV ZONEINFO=/usr/local/go/lib/time/zoneinfo.zip
COPY --from=build /out/fastpubsub /fastpubsub
# Numbers, since there is no /etc/passwd: Kubernetes checks runAsNonRoot by them.
USER 65532:65532
EXPOSE 8000
# Whether the server is ready. Other commands end long before the first look.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["/fastpubsub", "healthcheck"]
ENTRYPOINT ["/fastpubsub"]
CMD ["server"]
