# shellcheck shell=bash
# Debian packages: asks dpkg first, so that a machine that has everything pays milliseconds and touches no network.

is_installed() { [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }

# need_packages PACKAGE…: installs those that are missing, and says which
need_packages() {
  local missing=() package
  have apt-get || fail "no apt-get here" "This set-up knows Debian and Ubuntu. Elsewhere install the like of: $*"
  for package in "$@"; do
    is_installed "$package" || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  say "installing Debian packages: ${missing[*]}"
  update_package_lists
  with_progress "apt-get install ${missing[*]}" "$CARREL_CACHE_DIR/log/apt-install.log" \
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
}

# An index that we fetched ten minutes ago needs no second look; a machine that has none at all needs the first.
update_package_lists() {
  local stamp=$CARREL_CACHE_DIR/apt-updated
  if [[ -n $(find "$stamp" -mmin -10 2>/dev/null) ]] && compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null; then return 0; fi
  with_progress "apt-get update" "$CARREL_CACHE_DIR/log/apt-update.log" as_root apt-get update -q
  touch "$stamp"
}

# unpack_package PACKAGE DIRECTORY: its files, without installing it: for what would push out a package of the machine's own
unpack_package() {
  local work
  work=$(mktemp -d)
  update_package_lists
  (cd "$work" && apt-get download -q -o APT::Sandbox::User=root "$1") >/dev/null || fail "apt-get could not download $1" "Try: apt-get update"
  mkdir -p "$2"
  dpkg-deb -x "$work"/*.deb "$2"
  rm -rf "$work"
}

# without_services COMMAND…: runs it while packages may start no daemon. Debian asks /usr/sbin/policy-rc.d before it starts a
# service; the one we put there for the moment is taken away again, also when the command fails.
without_services() (
  before=$(mktemp -u /usr/sbin/policy-rc.d.XXXXXX)
  if [[ -e /usr/sbin/policy-rc.d ]]; then as_root mv /usr/sbin/policy-rc.d "$before"; fi
  printf '#!/bin/sh\nexit 101\n' | as_root tee /usr/sbin/policy-rc.d >/dev/null
  as_root chmod 755 /usr/sbin/policy-rc.d
  trap 'as_root rm -f /usr/sbin/policy-rc.d; if [[ -e $before ]]; then as_root mv "$before" /usr/sbin/policy-rc.d; fi' EXIT
  "$@"
)
