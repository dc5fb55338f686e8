# shellcheck shell=bash
# A private Postgres: a cluster of its own in a directory of ours, on a unix socket only, apart from whatever Postgres the machine has.
#
#   postgres_start DIRECTORY    makes it the first time, starts it when it is down
#   postgres_stop DIRECTORY
#   postgres_url DIRECTORY NAME
#
# The server runs as the system user `postgres` (it refuses root), so DIRECTORY must be reachable by that user: /root is not.
# Who may connect: whoever may enter the socket's directory, that is the server's user and root. Inside, the role is `carrel`.

postgres_user=postgres

need_postgres() {
  local bin
  bin=$(postgres_bin 2>/dev/null) && [[ -x $bin/initdb ]] && return 0
  if is_installed postgresql-common; then
    need_packages postgresql
    return 0
  fi
  # Debian makes and starts a cluster `main` with the package. Nobody asked for that one, and its port may be wanted.
  without_services need_packages postgresql-common
  without_main_cluster need_packages postgresql
}

# createcluster.conf is postgresql-common's; it is ours only for the moment of the installation
without_main_cluster() (
  conf=/etc/postgresql-common/createcluster.conf
  saved=$(mktemp)
  cp "$conf" "$saved"
  echo 'create_main_cluster = false' | as_root tee -a "$conf" >/dev/null
  trap 'as_root cp "$saved" "$conf"; rm -f "$saved"' EXIT
  without_services "$@"
)

# postgres_bin [DIRECTORY]: where the programs are, of the version that made the cluster
postgres_bin() {
  local made=${1:+$(as_root cat "$1/data/PG_VERSION" 2>/dev/null || true)}
  if [[ -n $made ]]; then
    echo "/usr/lib/postgresql/$made/bin"
  else
    find /usr/lib/postgresql -mindepth 2 -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1 | grep .
  fi
}

# as_postgres COMMAND…: from /, since it may not be allowed where we are
as_postgres() { (cd / && as_root runuser -u "$postgres_user" -- "$@"); }

postgres_is_up() {
  local bin
  bin=$(postgres_bin "$1") && [[ -x $bin/pg_isready ]] && as_root "$bin/pg_isready" -q -t 2 -h "$1/socket" -U carrel -d postgres
}

postgres_start() {
  local dir=$1 bin start
  if postgres_is_up "$dir"; then return 0; fi
  need_postgres
  bin=$(postgres_bin "$dir")
  [[ -x $bin/postgres ]] || fail "the cluster in $dir was made by Postgres $(as_root cat "$dir/data/PG_VERSION"), which is not installed any more" \
    "Install that version, or move $dir away to begin with an empty database."
  # The kernel allows 107 bytes for a socket's path.
  ((${#dir} <= 80)) || fail "the path $dir is too long for a unix socket" "Choose a data directory of at most 80 characters."
  if ! as_root test -e "$dir/data/PG_VERSION"; then postgres_make "$dir" "$bin"; fi
  start=$(now_ms)
  as_postgres "$bin/pg_ctl" -s -w -t 60 -D "$dir/data" -l "$dir/log" start >/dev/null || {
    as_root tail -n 15 "$dir/log" | sed 's/^/   | /' >&2
    fail "Postgres did not start in $dir" "The whole output: $dir/log"
  }
  done_in "$start" "Postgres started (private: $dir)"
}

postgres_make() {
  local dir=$1 bin=$2 start
  start=$(now_ms)
  as_root install -d -m 755 "$(dirname "$dir")"
  as_root install -d -m 700 -o "$postgres_user" -g "$postgres_user" "$dir" "$dir/socket"
  as_postgres test -w "$dir" || fail "the user $postgres_user cannot reach $dir" "Choose a data directory outside of private homes, such as one below /var/lib."
  # A half-made cluster (power cut during initdb) has no PG_VERSION; initdb wants an empty directory.
  as_root rm -rf "$dir/data.new"
  as_postgres "$bin/initdb" -D "$dir/data.new" -U carrel -E UTF8 --locale=C.UTF-8 --auth=trust >/dev/null || fail "initdb failed in $dir"
  # No TCP at all; 300 connections for tests that run side by side, each with a database and a pool of its own.
  printf '%s\n' "listen_addresses = ''" "unix_socket_directories = '$dir/socket'" 'max_connections = 300' 'fsync = on' |
    as_postgres tee -a "$dir/data.new/postgresql.conf" >/dev/null
  as_postgres mv "$dir/data.new" "$dir/data"
  done_in "$start" "private Postgres cluster made in $dir"
}

postgres_stop() {
  local bin
  as_root test -e "$1/data/postmaster.pid" || return 0
  bin=$(postgres_bin "$1")
  as_postgres "$bin/pg_ctl" -s -w -t 30 -m fast -D "$1/data" stop >/dev/null || return 0
  say "Postgres stopped ($1)"
}

postgres_url() { echo "postgres://carrel@localhost/$2?host=$1/socket"; }
