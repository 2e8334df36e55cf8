package pricing

import (
	"slices"
	"strings"
)

// aliasesOfProviders are other names for providers: LiteLLM's, those of the OpenTelemetry
// gen_ai semantic conventions (gen_ai.provider.name and the older gen_ai.system) and those
// that gateways use. Importers write the ones that fit into the book, so they are hashed
// and travel with it.
var aliasesOfProviders = map[string][]string{
	"anthropic":    {"claude"},
	"amazon_nova":  {"amazon-nova"},
	"azure":        {"azure_openai", "azure-openai", "azureopenai", "azure.ai.openai", "az.ai.openai", "azure_text"},
	"azure_ai":     {"azure-ai", "azure.ai.inference", "az.ai.inference"},
	"bedrock":      {"aws_bedrock", "aws-bedrock", "aws.bedrock", "amazon_bedrock", "amazon-bedrock", "bedrock_converse"},
	"cohere":       {"cohere_chat"},
	"fireworks_ai": {"fireworks", "fireworks-ai"},
	"gemini":       {"google", "google_ai_studio", "google-ai-studio", "gcp.gemini", "gcp.gen_ai", "google_genai", "google-genai"},
	"groq":         {"groqcloud"},
	"mistral":      {"mistralai", "mistral_ai", "mistral-ai"},
	"moonshot":     {"moonshotai", "moonshot_ai", "moonshot-ai", "kimi"},
	"openai":       {"text-completion-openai", "open_ai"},
	"perplexity":   {"perplexity-ai", "perplexity_ai"},
	"together_ai":  {"together", "together-ai", "togetherai"},
	"vertex_ai":    {"vertex", "vertexai", "vertex-ai", "gcp.vertex_ai", "google_vertex", "google-vertex"},
	"watsonx":      {"ibm.watsonx.ai"},
	"xai":          {"x_ai", "x-ai", "x.ai", "grok"},
	"zai":          {"z-ai", "z.ai", "zhipu", "zhipuai"},
}

// providerAliases returns the aliases of the given providers that no provider has as its
// own name.
func providerAliases(providers map[string]bool) []Alias {
	var aliases []Alias
	for provider, names := range aliasesOfProviders {
		if !providers[provider] {
			continue
		}
		for _, name := range names {
			if !providers[name] {
				aliases = append(aliases, Alias{Name: name, Provider: provider})
			}
		}
	}
	return aliases
}

// canonicalProvider maps LiteLLM's litellm_provider to the name used here.
func canonicalProvider(litellm string) string {
	name := strings.ToLower(litellm)
	if strings.HasPrefix(name, "vertex_ai-") {
		return "vertex_ai"
	}
	for provider, names := range aliasesOfProviders {
		if slices.Contains(names, name) {
			return provider
		}
	}
	for _, suffix := range []string{"-embedding-models"} {
		name = strings.TrimSuffix(name, suffix)
	}
	return strings.TrimPrefix(name, "text-completion-")
}

// entryKey takes a name of the list apart: "azure/eu/gpt-4o" of provider azure is model
// gpt-4o in region eu; "anthropic.claude-v2" of provider bedrock_converse is that model at
// bedrock. prefixed says that the name spells its provider out.
func entryKey(name, provider string) (key rowKey, prefixed bool, refused string) {
	if provider == "" {
		return rowKey{}, false, RefusedNoProvider
	}
	key.provider, key.model = canonicalProvider(provider), strings.ToLower(name)
	if head, rest, ok := strings.Cut(key.model, "/"); ok && canonicalProvider(head) == key.provider {
		key.model, prefixed = rest, true
	}
	if head, rest, ok := strings.Cut(key.model, "/"); ok && isRegion(key.provider, head) {
		key.region, key.model = head, rest
	}
	if !validProvider(key.provider) || !validName(key.model) {
		return rowKey{}, false, RefusedName
	}
	return key, prefixed, ""
}

// isRegion recognises the regional segments of the list: Azure's data zones and deployment
// scopes, and AWS region codes.
func isRegion(provider, segment string) bool {
	switch provider {
	case "azure":
		return slices.Contains([]string{"us", "eu", "global", "global-standard"}, segment)
	case "bedrock":
		parts := strings.Split(segment, "-")
		last := parts[len(parts)-1]
		return len(parts) >= 3 && len(parts[0]) == 2 && len(last) == 1 && last[0] >= '1' && last[0] <= '9'
	}
	return false
}
