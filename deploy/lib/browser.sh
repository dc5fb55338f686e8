# shellcheck shell=bash
# A Chromium and what drives it, for the test that looks at the editor as a student does.

# need_chromium: sets CHROMIUM
need_chromium() {
  local name
  for name in "${CHROMIUM:-}" chromium google-chrome google-chrome-stable; do
    if [[ -n $name ]] && have "$name"; then
      CHROMIUM=$(command -v "$name")
      export CHROMIUM
      return 0
    fi
  done
  # Ubuntu's package of that name only fetches a snap, which runs in no container.
  if grep -qi '^ID=ubuntu' /etc/os-release; then
    fail "no Chromium or Chrome found" "Install one (Ubuntu has it as a snap), and name its program in CHROMIUM."
  fi
  need_packages chromium fonts-dejavu-core
  export CHROMIUM=/usr/bin/chromium
}

# need_playwright DIRECTORY: the modules that its package-lock.json names
need_playwright() {
  if cmp -s "$1/package-lock.json" "$1/node_modules/.carrel-lock"; then return 0; fi
  with_progress "npm ci in $(basename "$1")" "$CARREL_CACHE_DIR/log/npm-browser.log" npm ci --prefix "$1" --ignore-scripts --no-audit --no-fund
  cp "$1/package-lock.json" "$1/node_modules/.carrel-lock"
}
