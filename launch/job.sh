# Sourced by the scripts that start jobs: their arguments, and commands that are printed before
# they are run, or, with --dry-run, instead.

refuse() {
  echo "error: $*" >&2
  exit 2
}

[ "${BASH_VERSINFO[0]}" -ge 5 ] || refuse "bash is $BASH_VERSION, but must be 5 or newer"

# parse "NAME ..." ARGUMENTS: takes --NAME=VALUE into variables (dashes become underscores), what
# follows -- into the array `program`, and --dry-run; --help shows the head of the script.
# shellcheck disable=SC2034
parse() {
  local _known=" $1 " _flag # underscores: a local `name` would hide the script's own
  shift
  dry_run="" program=()
  while [ $# -gt 0 ]; do
    _flag=${1%%=*} _flag=${_flag#--}
    case $1 in
      --) shift && program=("$@") && return ;;
      --dry-run) dry_run=yes ;;
      --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" && exit ;;
      --*=*) [[ $_known == *" $_flag "* ]] || refuse "unknown flag --$_flag; see $0 --help"
        printf -v "${_flag//-/_}" %s "${1#*=}" ;;
      *) refuse "unexpected argument '$1'; the program's own follow --, see $0 --help" ;;
    esac
    shift
  done
}

need() { # need NAME ...: refuses where one has not been given
  local _flag _variable
  for _flag; do
    _variable=${_flag//-/_}
    [ -n "${!_variable:-}" ] || refuse "--$_flag=... is missing; see $0 --help"
  done
}

quoted() { # words as a shell reads them again
  local word line=""
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  echo "${line# }"
}

run() {
  quoted "$@"
  [ -n "$dry_run" ] || "$@"
}
