# shellcheck shell=bash
# An image registry, for tests of pulls. Debian's, unpacked and not installed: as a package it would start a service.

CARREL_REGISTRY_BINARY=$CARREL_CACHE_DIR/docker-registry/usr/bin/docker-registry

need_registry() {
  [[ -x $CARREL_REGISTRY_BINARY ]] || unpack_package docker-registry "$CARREL_CACHE_DIR/docker-registry"
}
