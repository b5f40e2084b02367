#!/bin/sh
# Fetches the page's layout library: dagre, MIT licence (LICENSE, beside this). Only the bytes known here are accepted.
# To move to another version, change the three lines below to what npm and sha256sum say.
set -eu
version=3.1.3
archive=12441833c8af49e5a241d94bfd53159875965876b3f4f3214abafe1ed6a9ee4c
library=54a503e346f93ca0bb10abe7999587e037262935687aca45eb4e4b0f64bbb578
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm pack --silent "@dagrejs/dagre@$version" >/dev/null
echo "$archive  dagrejs-dagre-$version.tgz" | sha256sum --check --quiet
tar -xzf "dagrejs-dagre-$version.tgz" package/dist/dagre.min.js package/LICENSE
echo "$library  package/dist/dagre.min.js" | sha256sum --check --quiet
cp package/dist/dagre.min.js package/LICENSE "$here/"
