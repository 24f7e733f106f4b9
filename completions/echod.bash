# Completion of echod for bash. Written by `make reference`.
_echod() {
    local word command= flag= current=${COMP_WORDS[COMP_CWORD]#=}
    COMPREPLY=()
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        if [[ $flag ]]; then
            [[ $word = "=" ]] || flag=
            continue
        fi
        case $word in
            -c|--config|--listen.host|-p|--port|--listen.port|--listen.backlog|--listen.reuse_port|-n|--pool-size|--pool.size|--pool.when_full|--timeouts.idle|--timeouts.write|--timeouts.drain|--access.allow|--access.deny|--access.per_source|--access.accept_rate|--log.level|--log.format|--log.connections|--log.queue|--admin.socket|--admin.http|--sort|--source) flag=$word; continue ;;
            -*) continue ;;
        esac
        # A value with a colon is several words to bash, of which the first is taken above: what is no command is no other.
        case ${command:+$command }$word in
            "run"|"check"|"config"|"config show"|"config schema"|"status"|"connections"|"kill"|"reload") command="${command:+$command }$word" ;;
            *) command=${command:-$word} ;;
        esac
    done
    if [[ $flag ]]; then
        case $flag in
            -c|--config) compopt -o filenames && mapfile -t COMPREPLY < <(compgen -f -- "${current//\\/}") ;;
            --listen.reuse_port) COMPREPLY=($(compgen -W "true false" -- "$current")) ;;
            --pool.when_full) COMPREPLY=($(compgen -W "reject wait" -- "$current")) ;;
            --log.level) COMPREPLY=($(compgen -W "debug info warning error" -- "$current")) ;;
            --log.format) COMPREPLY=($(compgen -W "auto json console" -- "$current")) ;;
            --log.connections) COMPREPLY=($(compgen -W "all closed none" -- "$current")) ;;
            --admin.socket) compopt -o filenames && mapfile -t COMPREPLY < <(compgen -f -- "${current//\\/}") ;;
            --sort) COMPREPLY=($(compgen -W "id client age idle bytes state rtt" -- "$current")) ;;
        esac
        return
    fi
    case $command in
        "") COMPREPLY=($(compgen -W "run check config status connections kill reload -h --help --version" -- "$current")) ;;
        "run") COMPREPLY=($(compgen -W "-h --help -c --config --listen.host -p --port --listen.port --listen.backlog --listen.reuse_port -n --pool-size --pool.size --pool.when_full --timeouts.idle --timeouts.write --timeouts.drain --access.allow --access.deny --access.per_source --access.accept_rate --log.level --log.format --log.connections --log.queue --admin.socket --admin.http" -- "$current")) ;;
        "check") COMPREPLY=($(compgen -W "-h --help -c --config --listen.host -p --port --listen.port --listen.backlog --listen.reuse_port -n --pool-size --pool.size --pool.when_full --timeouts.idle --timeouts.write --timeouts.drain --access.allow --access.deny --access.per_source --access.accept_rate --log.level --log.format --log.connections --log.queue --admin.socket --admin.http -q --quiet" -- "$current")) ;;
        "config") COMPREPLY=($(compgen -W "show schema -h --help" -- "$current")) ;;
        "config show") COMPREPLY=($(compgen -W "-h --help -c --config --listen.host -p --port --listen.port --listen.backlog --listen.reuse_port -n --pool-size --pool.size --pool.when_full --timeouts.idle --timeouts.write --timeouts.drain --access.allow --access.deny --access.per_source --access.accept_rate --log.level --log.format --log.connections --log.queue --admin.socket --admin.http --sources" -- "$current")) ;;
        "config schema") COMPREPLY=($(compgen -W "-h --help" -- "$current")) ;;
        "status") COMPREPLY=($(compgen -W "-h --help -c --config --admin.socket --json --watch" -- "$current")) ;;
        "connections") COMPREPLY=($(compgen -W "-h --help -c --config --admin.socket --json --watch --sort --source" -- "$current")) ;;
        "kill") COMPREPLY=($(compgen -W "-h --help -c --config --admin.socket" -- "$current")) ;;
        "reload") COMPREPLY=($(compgen -W "-h --help -c --config --admin.socket" -- "$current")) ;;
    esac
}
complete -F _echod echod
