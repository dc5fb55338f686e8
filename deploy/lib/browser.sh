# shellcheck shell=bash
# A Chromium, for the test that looks at the editor as a student does.

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
