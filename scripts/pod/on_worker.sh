# What the launcher does on a worker. It is sent whole with each ssh: bash -c SCRIPT on_worker ACTION ARGUMENT..
# The last line that it prints begins with @mmed_jax_pod and is the answer: words KEY=VALUE, or `error TEXT`.
#
# ~/mmed_jax_pod/source     the checkout; `.commit` in it says which
# ~/mmed_jax_pod/venv       its environment; `requirements` in it the hash of what was installed
# ~/mmed_jax_pod/attempts/  a folder for each start: command, commit, step, tries, pid, log, exit (code, time in ns), stopped
# ~/mmed_jax_pod/running    locked as long as a run is going on
home=$HOME/mmed_jax_pod
answer() { echo "@mmed_jax_pod $*"; exit 0; }
fail() { echo "@mmed_jax_pod error $*"; exit 1; }
newest() { ls "$home/attempts" 2> /dev/null | sort | tail -n 1; }
is_running() { [ -e "$home/running" ] && ! flock -s -n "$home/running" true; }
lock_running() {
  mkdir -p "$home/attempts" || fail "cannot write in $HOME"
  exec 9>> "$home/running"
  flock -w "${1:-1}" 9 || fail "a run is going on here: attempt $(newest)"
}

# -- installation

pod_installed() {
  local commit requirements
  commit=$(tr '\n' ' ' < "$home/source/.commit" 2> /dev/null)
  requirements=$(cat "$home/venv/requirements" 2> /dev/null)
  is_running && running=yes || running=no
  answer "running=$running requirements=${requirements:-none} free_mib=$(df -Pm "$HOME" | awk 'NR == 2 {print $4}') commit=$(echo ${commit:-none} | tr ' ' '+')"
}

find_python() {
  local candidate
  for candidate in python3.12 python3.11 python3; do
    if command -v "$candidate" > /dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
      echo "$candidate"
      return
    fi
  done
}

make_venv() {
  local python
  python=$(find_python)
  if [ -n "$python" ]; then
    "$python" -m venv --clear "$home/venv" || fail "$python -m venv failed (Ubuntu: sudo apt-get install $python-venv)"
  else # Ubuntu 22.04, which TPU VMs run, has Python 3.10
    python3 -m pip install -q --user uv || fail "no Python 3.11 or newer here, and uv, which brings one, cannot be installed"
    python3 -m uv venv -q --clear --seed --python 3.12 "$home/venv" || fail "uv cannot bring a Python 3.12"
  fi
}

pod_install() { # archive, hash of the requirements, extras
  local archive=$1 requirements=$2 extras=$3
  lock_running
  mkdir -p "$home/source" || fail "cannot make $home/source"
  tar tzf "$archive" > "$home/files.new" || fail "$archive is not whole"
  # What the last archive had and this has not goes away; what runs have written stays.
  [ ! -e "$home/files" ] || (cd "$home/source" && grep -v '/$' "$home/files" | tr '\n' '\0' | xargs -0 rm -f --)
  tar xzf "$archive" -C "$home/source" || fail "cannot unpack $archive into $home/source: $(df -Ph "$HOME" | awk 'NR == 2 {print $4}') free"
  mv "$home/files.new" "$home/files" && rm -f "$archive"
  if [ "$(cat "$home/venv/requirements" 2> /dev/null)" != "$requirements" ]; then
    [ -x "$home/venv/bin/python" ] || make_venv
    (cd "$home/source" && "$home/venv/bin/python" -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[$extras]") > "$home/install.log" 2>&1 \
      || fail "pip: $(grep -v '^ *$' "$home/install.log" | tail -n 1 | cut -c 1-300) (all of it: $home/install.log)"
    echo "$requirements" > "$home/venv/requirements"
    answer installed=packages
  fi
  answer installed=source
}

# -- attempts

free_libtpu_lock() { # a killed process leaves the file behind, and libtpu then takes the TPU for used
  local file=${LIBTPU_LOCKFILE:-/tmp/libtpu_lockfile} holder
  [ -e "$file" ] || return 0
  holder=$(find /proc/[0-9]*/fd -lname "$file" 2> /dev/null | head -n 1 | cut -d / -f 3)
  [ -n "$holder" ] || holder=$(awk -v i="$(stat -c %i "$file")" '$6 ~ ":" i "$" {print $5; exit}' /proc/locks 2> /dev/null)
  [ -z "$holder" ] || fail "the TPU is in use: process $holder ($(tr '\0' ' ' < "/proc/$holder/cmdline" 2> /dev/null | cut -c 1-120)) holds $file"
  flock -n "$file" true 2> /dev/null || sudo -n flock -n "$file" true 2> /dev/null || fail "the TPU is in use: $file is held"
  rm -f "$file" 2> /dev/null || sudo -n rm -f "$file" || fail "$file is left over and cannot be removed"
}

# Its own session: a SIGTERM to its process group is the run's alone. The trap lets the shell outlive it and write the
# exit code; its child does not inherit it.
supervise='
folder=$1; shift
trap : TERM INT HUP
echo $$ > "$folder/pid.new" && mv "$folder/pid.new" "$folder/pid"
"$@" < /dev/null >> "$folder/log" 2>&1
code=$?
kill -TERM -- -$$ 2> /dev/null # what it has left behind would hold the lock of `running`
echo "$code $(date +%s%N)" > "$folder/exit.new" && mv "$folder/exit.new" "$folder/exit"
'

pod_start() { # attempt, newest step, tries, the command as one line, command..
  local attempt=$1 step=$2 tries=$3 line=$4 folder
  shift 4
  cd "$home/source" 2> /dev/null || fail "there is no $home/source: \`up\` or \`run\` installs it"
  [ -x "$home/venv/bin/python" ] || fail "there is no environment in $home/venv"
  ulimit -n 65536 2> /dev/null || ulimit -n "$(ulimit -Hn)" # grain and checkpoints open many files; as many as may be
  lock_running
  free_libtpu_lock
  folder=$home/attempts/$attempt
  mkdir -m 700 "$folder" || fail "cannot make $folder"
  : > "$folder/log" || fail "cannot write in $folder"
  printf '%s\n' "$line" > "$folder/command" # quoted by the launcher, which reads it again: %q has forms of bash's own
  cp .commit "$folder/commit"
  echo "$step" > "$folder/step"
  echo "$tries" > "$folder/tries"
  PATH=$home/venv/bin:$PATH PYTHONUNBUFFERED=1 setsid bash -c "$supervise" supervise "$folder" "$@" > /dev/null 2>&1 < /dev/null &
  for _ in $(seq 100); do
    [ -e "$folder/pid" ] && answer "pid=$(cat "$folder/pid")"
    sleep 0.1
  done
  fail "the supervisor of $folder did not start"
}

pod_state() { # attempt, or "" for the newest
  local attempt=${1:-$(newest)} folder running=no status
  [ -n "$attempt" ] || answer status=none
  folder=$home/attempts/$attempt
  is_running && running=yes
  if [ ! -e "$folder/pid" ]; then
    status=none
  elif [ -e "$folder/exit" ]; then
    status="ended code=$(cut -d ' ' -f 1 "$folder/exit") at=$(cut -d ' ' -f 2 "$folder/exit")"
  elif [ $running = yes ]; then
    status=running
  else
    status=killed
  fi
  answer "status=$status attempt=$attempt pid=$(cat "$folder/pid" 2> /dev/null) step=$(cat "$folder/step" 2> /dev/null) tries=$(cat "$folder/tries" 2> /dev/null) stopped=$([ -e "$folder/stopped" ] && echo yes) command=$(base64 -w 0 "$folder/command" 2> /dev/null)"
}

pod_follow() { # attempt, bytes already seen: the log until its process has ended
  local folder=$home/attempts/$1
  exec tail -s 0.5 -c "+$(($2 + 1))" -f --pid="$(cat "$folder/pid")" "$folder/log"
}

pod_tail() { # attempt, lines
  tail -n "$2" "$home/attempts/$1/log" 2> /dev/null
  echo
  answer done=yes
}

pod_signal() { # attempt, signal, "stop" where a person asks for it: to the process group of the run and to nothing else
  local folder=$home/attempts/$1 pid
  pid=$(cat "$folder/pid" 2> /dev/null)
  [ -n "$pid" ] && [ ! -e "$folder/exit" ] || answer signalled=no
  # A process id may be another's after a restart of the machine; a running attempt holds the lock.
  is_running && grep -qs "$folder" "/proc/$pid/cmdline" || answer signalled=no
  [ -z "$3" ] || touch "$folder/stopped"
  kill "-$2" -- "-$pid" 2> /dev/null || answer signalled=no
  answer signalled=yes
}

pod_steps() { # run directory: the newest finished checkpoint
  cd "$home/source" 2> /dev/null
  local step
  step=$(ls "$1/checkpoints" 2> /dev/null | grep -E '^[0-9]+$' | sort -n | tail -n 1)
  answer "step=${step:-none}"
}

action=$1
shift
"pod_$action" "$@"
