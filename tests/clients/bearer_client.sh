#!/bin/sh
# A node that knows A3's four calls and nothing else: register, heartbeat, poll, result.
# SECRET=… bearer_client.sh URL NODE_ID TASKS
set -eu
url=$1 node=$2 tasks=$3

post() { curl -sSf "$url$1" -H "Authorization: Bearer $2" -H 'Content-Type: application/json' -d "$3"; }
field() { printf '%s\n' "$(sed -n 's/.*"'"$1"'": *"\([^"]*\)".*/\1/p')"; }

token=$(post /nodes/register "$SECRET" '{"node_id":"'"$node"'","capabilities":{}}' | field node_token)
while [ "$tasks" -gt 0 ]; do
  post /nodes/heartbeat "$token" '{"node_id":"'"$node"'"}' > /dev/null
  task=$(curl -sSf -m 40 "$url/tasks/poll?wait=2" -H "Authorization: Bearer $token" | field task_id)
  if [ -n "$task" ]; then
    post /tasks/result "$token" \
      '{"task_id":"'"$task"'","status":"succeeded","result":{"by":"curl"}}' | field state
    tasks=$((tasks - 1))
  fi
done
