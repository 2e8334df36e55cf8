package load

import "fmt"

// model is one row of the price list that a call can name.
type model struct {
	provider, name string
	operation      string
}

// profile is what an application says about itself on every call.
type profile struct {
	client      int32 // the trace's client, or the position in the table
	team        string
	service     string
	feature     string
	agent       string
	endCustomer string
	environment string
	apiKey      string
	synthetic   bool // labelled so in the tags
}

// The fixed table that a trace's clients are mapped by: client c is
// applications[c % len]; every ninth client runs in staging.
var applications = [...]struct{ team, service, feature, agent string }{
	{"support", "helpdesk", "answer-draft", ""},
	{"search", "product-search", "query-rewrite", ""},
	{"platform", "code-review", "review-comments", "reviewer"},
	{"data-science", "notebooks", "ad-hoc", ""},
	{"growth", "onboarding", "guide", "guide-bot"},
	{"legal", "contracts", "clause-extraction", ""},
	{"marketing", "campaigns", "copy", ""},
	{"finance", "invoices", "matching", ""},
	{"support", "voice", "call-summary", ""},
	{"search", "knowledge-base", "summaries", ""},
	{"platform", "incident-bot", "triage", "triage-bot"},
	{"research", "evaluation", "grading", ""},
	{"", "legacy-gateway", "", ""}, // untagged on purpose
}

// newProfile is the profile of a trace's client.
func newProfile(client int32) profile {
	app := applications[int(client)%len(applications)]
	p := profile{
		client: client, team: app.team, service: app.service, feature: app.feature, agent: app.agent,
		environment: "production", apiKey: fmt.Sprintf("ak-%04d", client),
	}
	if client%9 == 8 {
		p.environment = "staging"
	}
	return p
}

// Models that emit uses. All are priced by internal/oracle's table, which is
// typed from the published list; a test holds the two together.
var (
	gpt4o      = model{"openai", "gpt-4o", "chat"}
	gpt4oMini  = model{"openai", "gpt-4o-mini", "chat"}
	gpt5       = model{"openai", "gpt-5", "chat"}
	o4Mini     = model{"openai", "o4-mini", "chat"}
	azureGPT4  = model{"azure", "gpt-4", "chat"}
	sonnet     = model{"anthropic", "claude-sonnet-4-5", "chat"}
	haiku      = model{"anthropic", "claude-haiku-4-5", "chat"}
	gemini     = model{"gemini", "gemini-2.5-pro", "chat"}
	reasoner   = model{"deepseek", "deepseek-reasoner", "chat"}
	deepseek   = model{"deepseek", "deepseek-chat", "chat"}
	kimi       = model{"moonshot", "kimi-k2-0905-preview", "chat"}
	noSuch     = model{"openai", "gpt-internal-finetune-7", "chat"} // unknown model
	noProvider = model{"inhouse", "llama-gateway-v2", "chat"}       // unknown provider
)
