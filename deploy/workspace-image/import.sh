# shellcheck shell=bash
# System, editor and a student's home become one image, by `docker import`: no image registry and no `docker build`. Sourced by build.

# pack_image ROOTFS_TAR EDITOR_TAR WORK SOURCES: WORK/image.tar. Docker refuses a path that comes twice, directories too, so what is added to the
# system's tree are leaves, or trees that it does not have.
pack_image() {
  local work=$3 home=$3/stage/home/coder
  rm -rf "$work/stage"
  mkdir -p "$home/project" "$home/.local/share/code-server/User" "$work/stage/usr/local/bin"
  cp "$4/settings.json" "$home/.local/share/code-server/User/"
  cp "$4/carrel-desk" "$work/stage/usr/local/bin/"
  ln -s /opt/code-server/bin/code-server "$work/stage/usr/local/bin/code-server"
  cp "$1" "$work/image.tar"
  tar -A -f "$work/image.tar" "$2"
  tar -C "$work/stage" --owner=0 --group=0 -rf "$work/image.tar" usr/local/bin/carrel-desk usr/local/bin/code-server
  tar -C "$work/stage" --owner=1000 --group=1000 -rf "$work/image.tar" home/coder
  rm -rf "$work/stage"
}

# import_image TAR IMAGE LABEL. tini -s: the node agent asks for Docker's init as well, so tini may not be process 1; -g: a stop reaches
# everything in the editor's process group. The variable keeps the editor from starting an AI agent host of 75 MB for each window.
import_image() {
  docker import \
    --change 'USER 1000:1000' --change 'WORKDIR /home/coder/project' --change 'EXPOSE 8080' \
    --change 'ENV HOME=/home/coder USER=coder SHELL=/bin/bash LANG=C.UTF-8 EDITOR=nano' \
    --change 'ENV PATH=/usr/local/bin:/usr/bin:/bin VSCODE_OPTIONS=agent-host-bridge-host=127.0.0.1' \
    --change 'ENTRYPOINT ["tini", "-s", "-g", "--", "carrel-desk"]' --change "LABEL $3" "$1" "$2"
}
