#!/bin/sh
# A node that knows A3's four calls and nothing else: register, heartbeat, poll, result.
# SECRET=… bearer_client.sh URL NODE_ID TASKS
set -eu
url=$1 node=$2 tasks=$3

# An answer that looks like PATTERN, or an error of control, which ends the program. Anything else
# is not control's (protocol.md, "Which answers are control's"): ask again.
ask() {  # PATTERN TOKEN PATH [BODY]
  while :; do
    answer=$(curl -sS -m 40 -w '%{http_code}' "$url$3" -H "Authorization: Bearer $2" \
      -H 'Content-Type: application/json' ${4:+-d "$4"}) || answer=
    case $answer in
      *'"message"'*'"rc"'*'}'[45][0-9][0-9]) echo "$answer" >&2; exit 1 ;;
      $1'}'2[0-9][0-9]) printf '%s\n' "$answer"; return ;;
    esac
    sleep 1
  done
}
field() { printf '%s\n' "$(sed -n 's/.*"'"$1"'": *"\([^"]*\)".*/\1/p')"; }

answer=$(ask '{*"node_token"*' "$SECRET" /nodes/register '{"node_id":"'"$node"'","capabilities":{}}')
token=$(echo "$answer" | field node_token)
while [ "$tasks" -gt 0 ]; do
  ask '{*"incarnation"*' "$token" /nodes/heartbeat '{"node_id":"'"$node"'"}' > /dev/null
  answer=$(ask '{*"reasons"*"commands"*' "$token" '/tasks/poll?wait=2')
  task=$(echo "$answer" | field task_id)
  if [ -n "$task" ]; then
    answer=$(ask '{*"'"$task"'"*"state"*' "$token" /tasks/result \
      '{"task_id":"'"$task"'","status":"succeeded","result":{"by":"curl"}}')
    echo "$answer" | field state
    tasks=$((tasks - 1))
  fi
done
