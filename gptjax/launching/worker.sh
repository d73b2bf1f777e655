#!/usr/bin/env bash
# One host of a slice: what the launcher has it do, in the folder where this file, code.tar.gz and command.sh lie.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

fail() { # fail SENTENCE
    echo "error: $1" >&2
    exit 1
}

is_running() {
    [[ -s pid ]] && kill -0 "$(cat pid)" 2>/dev/null
}

find_python() { # the base images of Cloud TPU bring Python 3.10, which JAX no longer supports
    local candidate
    for candidate in python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null && "$candidate" -c 'import venv, ensurepip' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    python3 -m pip install --quiet --user uv >&2 || fail "this host has no Python 3.11 or newer, and pip cannot fetch uv"
    python3 -m uv python install --quiet 3.12 >&2 || fail "this host has no Python 3.11 or newer, and uv cannot fetch it"
    python3 -m uv python find 3.12
}

prepare() { # prepare ACCELERATOR BUCKET: the new tree over the old one, its environment, the bucket with the runs
    local python=${PYTHON:-}
    is_running && fail "the run of an earlier launch still works here: stop it first"
    mkdir -p tree
    find tree -mindepth 1 -maxdepth 1 ! -name .venv ! -name runs -exec rm -rf {} +
    tar -xzf code.tar.gz -C tree
    cd tree
    mkdir -p runs
    mountpoint -q runs && fusermount -u runs # it may be another bucket's
    command -v gcsfuse >/dev/null || sudo apt-get install -y -q gcsfuse >&2 ||
        fail "gcsfuse, which shows a bucket as a folder, is not on this host and cannot be installed"
    gcsfuse --implicit-dirs "$2" "$PWD/runs" >&2 || fail "the bucket $2 cannot be mounted: see the lines above"
    [[ -n $python ]] || python=$(find_python)
    PYTHON=$python ACCELERATOR=$1 ./launch.sh local -- true
}

start() { # starts command.sh in the tree so that it outlives this connection
    is_running && fail "the run of an earlier launch still works here: stop it first"
    rm -f code pid stopped
    setsid nohup bash "$PWD/worker.sh" supervise >>worker.log 2>&1 </dev/null &
    for _ in {1..100}; do
        [[ -s pid ]] && return
        sleep 0.1
    done
    fail "the run did not start"
}

supervise() {
    local ended=0
    (cd tree && exec bash ../command.sh) &
    echo $! >pid
    wait $! || ended=$?
    echo "$ended" >code
}

follow() { # shows the log until the run ends
    tail -n +1 -F --sleep-interval=0.2 --pid="$(cat pid)" worker.log 2>/dev/null
}

state() { # "ended CODE", "running" or "lost"; "stopped" is added once a person has asked for it
    local said=lost
    if is_running; then
        said=running
    elif [[ -s code ]]; then
        said="ended $(cat code)"
    fi
    [[ ! -e stopped ]] || said+=" stopped"
    echo "worker $(hostname) $said"
}

stop() { # the run saves and leaves
    touch stopped
    is_running || return 0
    kill -TERM "$(cat pid)"
}

case ${1:-} in
prepare | start | supervise | follow | state | stop) "$@" ;;
*) fail "write: worker.sh prepare ACCELERATOR BUCKET | start | follow | state | stop" ;;
esac
