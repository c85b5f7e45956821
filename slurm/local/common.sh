# shellcheck shell=bash
# Functions shared by start, stop and break. Sourced; the caller sets -euo pipefail.

ME=$(basename "$0")
DEFAULT_DIR=/var/tmp/mar_bench-slurm
MARK="# mar_bench-slurm"   # at the end of our lines in /etc/hosts: MARK FIRSTPORT-LASTPORT DIR
STAMP=.mar_bench-slurm     # a folder that holds this file is a cluster's folder, and may be purged

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin # the daemons' folders are not on every root's PATH

# In a job of a cluster: that cluster's slurm.conf.
# shellcheck disable=SC2034  # stop asks
JOB_OF=${SLURMD_NODENAME:+${SLURM_CONF:-}}

# Options for another cluster in the caller's environment (SLURM_CLUSTERS, SINFO_FORMAT, ...) would change our commands.
for name in $(compgen -e | grep -E '^(SLURM|SLURMD|SBATCH|SALLOC|SCANCEL|SINFO|SQUEUE|SACCT)_' || true); do
  if [ "$name" != SLURM_CONF ]; then unset "$name"; fi
done

say() { echo "$ME: $*"; }
refuse() { say "$*" >&2; exit 2; }   # the user must change something; nothing has been changed yet

require_root() {
  [ "$(id -u)" = 0 ] || refuse "needs root: slurmd starts each job as the job's own user"
}

# use_dir PATH: sets DIR, or refuses a path that a cluster cannot live in.
use_dir() {
  DIR=$(realpath -m -- "$1")
  # slurm.conf has no quotes, and reads % # [ ] , = in paths as its own
  [[ $DIR =~ ^/[A-Za-z0-9._/-]+$ ]] || refuse "'$DIR': only letters, digits and . _ - / work in a path of slurm.conf"
  # sun_path holds 107 characters, and slurmstepd adds up to 40 (/spool.n64/n64_12345678.4294967291)
  [ "${#DIR}" -le 64 ] || refuse "'$DIR' is ${#DIR} characters long; unix sockets leave room for 64"
  # anyone can write to /var/tmp: never run files of another user
  [ ! -e "$DIR" ] || [ -O "$DIR" ] || refuse "'$DIR' belongs to another user"
}

is_cluster() { [ -f "$1/$STAMP" ]; }

is_free() { [ ! -e "$1" ] || { [ -d "$1" ] && [ -z "$(ls -A "$1")" ]; }; }

# One start or stop at a time in a DIR. Long-lived children must close fd 9, or they would keep the lock.
lock_dir() {
  exec 9>>"$DIR/$STAMP"
  flock -n 9 && return
  [ "$1" = wait ] || refuse "another start or stop is running in $DIR"
  say "waits for another start or stop in $DIR"
  flock -w 180 9 || refuse "gave up after 180 s: another start or stop is running in $DIR"
}

# wait_for SECONDS COMMAND...: polls ten times a second; no longer than the process WHILE, if set, lives.
wait_for() {
  local end=$((SECONDS + $1)); shift
  until ("$@") >/dev/null 2>&1 9>&-; do # in a subshell: a trap that strikes meanwhile must not speak into /dev/null
    [ "$SECONDS" -lt "$end" ] || return 1
    [ -z "${WHILE:-}" ] || kill -0 "$WHILE" 2>/dev/null || return 1
    sleep 0.1
  done
}

# --- processes ------------------------------------------------------------------------------------------------------
# No pid files: pids are reused, and a start that dies between fork and write would leave an unknown daemon. Instead,
# processes are found by what they carry: daemons have MAR_BENCH_SLURM=DIR and MAR_BENCH_DAEMON=NAME in the environment;
# jobs the SLURM_CONF that slurmd gives them; helpers that overwrite their environment with a title hold a log open.
# A zombie has neither environment nor open files, so it counts as gone.

# with_env NAME=VALUE...: the pids of all processes that have all of these in their environment.
with_env() {
  local word files=(/proc/[0-9]*/environ)
  for word; do
    mapfile -t files < <(grep -lszxF -e "$word" "${files[@]}" || true)
    [ "${#files[@]}" -gt 0 ] || return 0
  done
  local file
  for file in "${files[@]}"; do file=${file#/proc/}; echo "${file%/environ}"; done
}

# having PATTERN: of the pids on stdin those with a line like it in their environment.
having() {
  local pid
  while read -r pid; do
    if grep -qsz -e "$1" "/proc/$pid/environ"; then echo "$pid"; fi
  done
}

daemon() { with_env "MAR_BENCH_SLURM=$DIR" "MAR_BENCH_DAEMON=$1"; }

slurmds() { with_env "MAR_BENCH_SLURM=$DIR" | having '^MAR_BENCH_DAEMON=slurmd\.'; }

# launch NAME COMMAND...: a daemon in a session of its own; output goes to DIR/log/NAME.out, its pid to LAUNCHED.
launch() {
  local name=$1; shift
  MAR_BENCH_SLURM=$DIR MAR_BENCH_DAEMON=$name setsid "$@" >>"$DIR/log/$name.out" 2>&1 </dev/null 9>&- &
  LAUNCHED=$!
  disown # or bash tells when it has been killed
}

# shellcheck disable=SC2329  # start and break call it
launch_slurmd() { launch "slurmd.$1" slurmd -D -N "$1" -f "$DIR/slurm.conf"; }

# stepds [NODE]: every slurmstepd and slurmscriptd of the cluster, or the slurmstepds of one node.
stepds() {
  local file pid log
  for file in $(grep -lsxE 'slurm(step|script)d' /proc/[0-9]*/comm || true); do
    pid=${file#/proc/}; pid=${pid%/comm}
    while read -r log; do
      case $log in
        "$DIR/log/${1:+slurmd.$1.log}"*) echo "$pid"; break ;;
      esac
    done < <(find "/proc/$pid/fd" -type l -printf '%l\n' 2>/dev/null)
  done
}

# children_too: the pids read from stdin and all their descendants.
children_too() {
  local roots
  roots=$(cat)
  [ -n "$roots" ] || return 0
  { cat /proc/[0-9]*/stat 2>/dev/null || true; } | awk -v roots="$roots" '
    { pid = $1; sub(/^.*\) /, ""); parent[pid] = $2; state[pid] = $1 }  # the name, in brackets, may hold spaces
    END {
      n = split(roots, r); for (i = 1; i <= n; i++) take[r[i]] = 1
      do { more = 0; for (p in parent) if (!(p in take) && parent[p] in take) { take[p] = 1; more = 1 } } while (more)
      for (p in take) if (p in state && state[p] != "Z") print p
    }'
}

# tasks [NODE]: slurmstepds and all processes of jobs. The environment finds what has left its step's process tree.
tasks() {
  {
    stepds "$@" | children_too
    with_env "SLURM_CONF=$DIR/slurm.conf" ${1:+"SLURMD_NODENAME=$1"} | having ^SLURMD_NODENAME=
  } | sort -un | grep -vx "$$" || true
}

nodes() { sed -n 's/^NodeName=\([^ ]*\).*/\1/p' "$DIR/slurm.conf" 2>/dev/null || true; }

everything() { { with_env "MAR_BENCH_SLURM=$DIR" | children_too; tasks; } | sort -un | grep -vx "$$" || true; }

# end SIGNAL: to the pids on stdin; pids that no longer exist are ignored.
end() { xargs -r kill "-$1" 2>/dev/null || true; }

# --- /etc/hosts -----------------------------------------------------------------------------------------------------
# n1..nN must resolve, for MASTER_ADDR=n1 in torch.distributed. All clusters of the machine lock this file, and its
# lines record which cluster holds which ports.

# forget_hosts: removes our lines. Not sed -i: in a container the file is a mount, which rename cannot replace.
forget_hosts() {
  (
    flock 8
    grep -qs "$MARK .* $DIR\$" /etc/hosts || exit 0
    text=$(awk -v mark="$MARK" -v dir="$DIR" '!(index($0, mark) && $NF == dir)' /etc/hosts; echo .)
    printf %s "${text%.}" >/etc/hosts
  ) 8>>/etc/hosts
}

# --- the end --------------------------------------------------------------------------------------------------------

quiet() { [ -z "$(squeue -h 2>/dev/null)" ]; }

gone() { [ -z "$(everything)" ]; }

# take_down: jobs first, for sacct to report CANCELLED; then daemons, for a consistent database; then SIGKILL.
take_down() {
  local name
  export SLURM_CONF=$DIR/slurm.conf
  if [ -f "$SLURM_CONF" ] && [ -n "$(daemon slurmctld)" ] &&
    [ "$(timeout 5 squeue -h -o %i 2>/dev/null | wc -l)" -gt 0 ]; then
    timeout 5 squeue -h -o %A 2>/dev/null | sort -u | timeout 10 xargs -r scancel --quiet 2>/dev/null || true
    wait_for 5 quiet || true
  fi
  # in the order of their dependencies: slurmctld reports to slurmdbd, which writes to mariadbd; all need munged
  for name in slurmd slurmctld slurmdbd mariadbd munged; do
    if [ "$name" = slurmd ]; then
      slurmds | end TERM
    else
      daemon "$name" | end TERM
      wait_for 10 daemon_gone "$name" || true
    fi
  done
  # stepds, jobs and daemons that hang, processes of an interrupted start
  for _ in 1 2 3 4 5; do
    everything | end KILL
    wait_for 2 gone && break
  done
  forget_hosts
  gone || { say "cannot kill these processes: $(everything | tr '\n' ' ')" >&2; return 1; }
}

daemon_gone() { [ -z "$(daemon "$1")" ]; }
