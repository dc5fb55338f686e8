# shellcheck shell=bash
# The system under the editor: Debian with the few programs that the editor calls and a student expects. Sourced by build.

# make_rootfs TAR
make_rootfs() {
  local without=() path
  # Nobody reads manuals in a desk of 500 MB; git and the C.UTF-8 locale need none of these.
  for path in man info doc locale; do without+=(--dpkgopt="path-exclude=/usr/share/$path/*"); done
  # uid 1000 is the owner of every student's directory; the home itself comes with the editor, where it can change without this.
  # shellcheck disable=SC2016 # the hooks expand $1, the new system's root
  mmdebstrap --format=tar --variant=minbase "${without[@]}" \
    --include=bash,ca-certificates,git,less,nano,procps,tini \
    --customize-hook='chroot "$1" useradd --uid 1000 --no-create-home --home-dir /home/coder --shell /bin/bash coder' \
    --customize-hook='rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/* "$1"/var/log/* "$1"/etc/hostname "$1"/etc/resolv.conf' \
    bookworm "$1"
}
