# shellcheck shell=bash disable=SC2164 # with_progress runs this with errexit on
# code-server and the node it wants, from their npm packages. Sourced by build.
#
# The package's own install script would also build parts for other platforms and fetch binaries; so it is left out, and what it does
# that a desk needs is done here.

code_server_version=4.139.1
node_version=24.21.0 # code-server 4.133 and later insist on node 24

# make_editor WORK TAR: a tree `opt/code-server` as the official release lays it out
make_editor() {
  local work=$1 arch
  case $(uname -m) in
    x86_64) arch=x64 ;;
    aarch64) arch=arm64 ;;
    *) fail "no prebuilt node for $(uname -m)" "Build the image from the Dockerfile on such a machine." ;;
  esac
  rm -rf "$work"
  mkdir -p "$work/packages" "$work/node" "$work/opt/code-server"
  (cd "$work/packages" && npm pack --silent "node-linux-$arch@$node_version" "code-server@$code_server_version" >/dev/null)
  tar -xf "$work/packages/node-linux-$arch-$node_version.tgz" -C "$work/node" --strip-components=1
  tar -xf "$work/packages/code-server-$code_server_version.tgz" -C "$work/opt/code-server" --strip-components=1
  rm -rf "$work/packages"
  (
    # node 24 for npm and node-gyp alike. The variable beats a nodedir in somebody's .npmrc, which would point at another node's headers.
    export PATH=$work/node/bin:$PATH npm_config_nodedir=$work/node npm_config_loglevel=error JOBS=max
    install_modules "$work/opt/code-server"
  )
  link_scripts "$work/opt/code-server/lib/vscode"
  prune "$work/opt/code-server" "$arch"
  cp "$work/node/bin/node" "$work/opt/code-server/lib/node"
  strip "$work/opt/code-server/lib/node"
  write_launcher "$work/opt/code-server"
  tar -C "$work" --owner=0 --group=0 --sort=name -cf "$2" opt/code-server
}

install_modules() {
  cd "$1"
  npm ci --omit=dev --ignore-scripts
  cd lib/vscode
  npm install --omit=dev --ignore-scripts # not `npm ci`: the lock that is shipped disagrees with package.json about tslib
  # The two modules without a prebuilt binary that the server cannot do without. kerberos and sqlite3 stay uncompiled on purpose.
  npm rebuild --foreground-scripts @vscode/spdlog @vscode/native-watchdog
  cd extensions
  npm ci --omit=dev --ignore-scripts
  node postinstall.mjs >/dev/null
}

# What postinstall.sh would link: the `code-server` command in the editor's terminal, and how it opens a browser.
link_scripts() {
  ln -sf code-linux.sh "$1/bin/remote-cli/code-server"
  ln -sf browser-linux.sh "$1/bin/helpers/browser.sh"
}

# prune DIRECTORY ARCH: other platforms' binaries, the AI agent host and source maps: more than half of the size
prune() {
  local modules=$1/lib/vscode/node_modules here=linux-$2
  rm -rf "$modules"/{@github,@microsoft/mxc-sdk,@vscode/windows-*,@vscode/sqlite3,kerberos,@parcel/watcher-linux-*-musl} \
    "$modules"/@vscode/{spdlog,native-watchdog}/build/Release/{obj.target,.deps} "$modules/node-pty/third_party" "$1/lib/vscode/extensions/copilot"
  find "$modules/@vscode/ripgrep-universal/bin" "$modules/node-pty/prebuilds" "$1/node_modules/argon2/prebuilds" \
    -mindepth 1 -maxdepth 1 ! -name "$here" -exec rm -rf {} +
  find "$1" -name '*.map' -delete
}

write_launcher() {
  mkdir -p "$1/bin"
  printf '#!/bin/sh\nexec /opt/code-server/lib/node /opt/code-server "$@"\n' >"$1/bin/code-server"
  chmod 755 "$1/bin/code-server"
}
