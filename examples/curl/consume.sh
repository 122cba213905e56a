#!/bin/sh
# Consumes from a subscription with curl: takes what there is, handles each message, and acks it, until nothing has come for
# as long as a request waits. A message whose handler fails is nacked, and comes again after the backoff.
#
#   API=http://127.0.0.1:8000 ./consume.sh SUBSCRIPTION [SECONDS]
#
# SECONDS is how long to wait for messages, up to 30; default 20. With authentication TOKEN has an access token. With jq it
# takes 100 messages a request. Without it takes one, since then the answer can be cut where its first and last members end.
set -eu

api=${API:?}/subscriptions/${1:?which subscription?}
consumer=$(uname -n)-$$

# What there is to do with a payload.
handle() {
	printf 'handled %s\n' "$1"
	case $1 in *broken*) return 1 ;; esac
}

# request PATH [BODY]
request() {
	curl -sS --fail-with-body --retry 5 --retry-connrefused ${TOKEN:+-H "Authorization: Bearer $TOKEN"} \
		${2:+-H "Content-Type: application/json" -d "$2"} "$api/$1"
}

# split writes each message as two lines: id and payload.
if command -v jq >/dev/null; then
	batch=100
	split() { jq -r '.data[] | .id, (.payload | tojson)'; }
else
	batch=1
	# The id comes first. The payload ends where delivery_attempts is for the last time: attributes, which may follow, are strings.
	split() {
		tr -d '\n\r' | sed -n 's/^{"data":\[{"id":"\([^"]*\)","subscription_id":"[^"]*","payload":\(.*\),"delivery_attempts":[0-9].*/\1\
\2/p'
	}
fi

while
	answer=$(request "messages?consumer_id=$consumer&batch_size=$batch&wait_seconds=${2:-20}") || exit
	messages=$(printf '%s' "$answer" | split) || exit
	[ -n "$messages" ]
do
	while read -r id && read -r payload; do
		if handle "$payload" </dev/null; then
			request acks "[\"$id\"]"
		else
			request nacks "[\"$id\"]"
		fi
	done <<-END
		$messages
	END
done
