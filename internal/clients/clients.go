// Package clients is the suite that points real clients at the metering proxy:
// the OpenAI and Anthropic SDKs for Python and Node.js, pinned in deploy/clients.
// `make test/clients` runs it; it has no code for the program.
//
// A provider of our own replays the recorded exchanges of ../shared/data, the
// whole program runs in a process of its own, and afterwards the ledger must hold
// each call once, with the tokens that the provider stated and the SDK read.
// Streams, tools, errors, retries by the client, streams that the client leaves,
// streams that the provider cuts off, and refusals by the proxy are among the calls.
//
// TestClientsBedrock has boto3 call a provider that takes the tenant's AWS signature only.
//
// Its last line counts:
//
//	clients: calls=… replayed=… attempts=… entries=… missing=0 doubled=0 wrong_tokens=0 provider_complaints=0
package clients
