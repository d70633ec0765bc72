#!/bin/sh
# Build the Collector that builder.yaml describes, once, and print the path of the program.
# It is kept outside the tree, by the hash of the manifest: $XDG_CACHE_HOME/otel_activity/collector/HASH.
# Needs Go 1.25 or newer and a proxy for Go modules. Takes minutes the first time, afterwards nothing.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
manifest=$here/builder.yaml
sum() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi; }
hash=$({ cat "$manifest"; uname -sm; } | sum | cut -c1-16)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/otel_activity/collector
program=$cache/$hash/otelcol-activity

if [ -x "$program" ]; then
  echo "$program"
  exit 0
fi
if ! command -v go >/dev/null; then
  echo "build.sh: the program 'go' is not installed; install Go 1.25 or newer (https://go.dev/dl)" >&2
  exit 1
fi
mkdir -p "$cache/$hash"
work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
version=$(sed -n 's|.*/otlpreceiver \(v[0-9.]*\)$|\1|p' "$manifest")
sed "s|^dist:|&\n  output_path: $work/out|" "$manifest" >"$work/builder.yaml"
echo "build.sh: building the Collector $version; this takes minutes" >&2
# No C compiler is asked for, and the work folder is nobody's git repository.
CGO_ENABLED=0 GOFLAGS="-buildvcs=false ${GOFLAGS:-}" \
  go run "go.opentelemetry.io/collector/cmd/builder@$version" --config="$work/builder.yaml" >&2
# Renamed whole: whoever looks at the same time finds either nothing or a finished program.
mv -f "$work/out/otelcol-activity" "$program"
echo "$program"
