package pricing

import "strings"

// The longest names that lookup normalises: a model of MaxName behind a provider and a slash.
// Small, because the buffers are cleared on every such call.
const (
	maxProvider  = 64
	maxUsageName = MaxName + maxProvider + 1
)

// lookup finds a model by the names a producer used. The rules, in order:
//
//  1. The exact names; this is the hot path.
//  2. ASCII letters are lowered, and the provider goes through the book's provider aliases
//     ("google" → "gemini", "aws.bedrock" → "bedrock").
//  3. The exact model name, or a model alias of the book. A dated name
//     ("gpt-4o-2024-08-06") equals an undated one only by such an alias.
//  4. A model "x/rest" where x is the provider or an alias of it: "rest".
//  5. Without a provider, a model "x/rest" where x is any provider or alias: "rest" of x.
//  6. Bedrock ARNs: what follows the last "/" ("arn:…:inference-profile/us.anthropic.…").
//     Gemini resource names: "models/x" is "x". OpenAI fine-tunes: "ft:base:org:name:id" is
//     "ft:base".
//
// A name that none of them finds is unknown; there is no nearest match. The strings are not
// kept and nothing is allocated.
func (x *index) lookup(provider, name string) *model {
	if m := x.models[modelKey{provider, name}]; m != nil {
		return m
	}
	if len(provider) > maxProvider || len(name) > maxUsageName {
		return nil
	}
	var providerBuf [maxProvider]byte
	var nameBuf [maxUsageName]byte
	lowProvider := lower(providerBuf[:0], provider)
	low := lower(nameBuf[:0], name)
	if len(lowProvider) == 0 {
		return x.lookupPrefixed(low)
	}
	canonical, ok := x.providers[string(lowProvider)]
	if !ok {
		return nil
	}
	return x.lookupIn(canonical, low)
}

// lookupPrefixed is rule 5.
func (x *index) lookupPrefixed(name []byte) *model {
	head, rest, ok := cut(name)
	if !ok {
		return nil
	}
	canonical, ok := x.providers[string(head)]
	if !ok {
		return nil
	}
	return x.lookupIn(canonical, rest)
}

// lookupIn is rules 3, 4 and 6 for a canonical provider.
func (x *index) lookupIn(provider string, name []byte) *model {
	if m := x.models[modelKey{provider, string(name)}]; m != nil {
		return m
	}
	if head, rest, ok := cut(name); ok && x.providers[string(head)] == provider {
		if m := x.models[modelKey{provider, string(rest)}]; m != nil {
			return m
		}
		name = rest
	}
	if rest, ok := resourceName(provider, name); ok {
		return x.models[modelKey{provider, string(rest)}]
	}
	return nil
}

// resourceName is rule 6.
func resourceName(provider string, name []byte) ([]byte, bool) {
	const arn, models, tuned = "arn:", "models/", "ft:"
	switch {
	case provider == "bedrock" && len(name) > len(arn) && string(name[:len(arn)]) == arn:
		for i := len(name) - 1; i > 0; i-- {
			if name[i] == '/' {
				return name[i+1:], true
			}
		}
	case provider == "gemini" && len(name) > len(models) && string(name[:len(models)]) == models:
		return name[len(models):], true
	case provider == "openai" && len(name) > len(tuned) && string(name[:len(tuned)]) == tuned:
		for i := len(tuned); i < len(name); i++ {
			if name[i] == ':' {
				return name[:i], true
			}
		}
	}
	return nil, false
}

// cut splits name at its first slash.
func cut(name []byte) (head, rest []byte, ok bool) {
	for i, c := range name {
		if c == '/' {
			return name[:i], name[i+1:], true
		}
	}
	return nil, nil, false
}

// lower appends s with its ASCII capitals lowered.
func lower(dst []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst
}

// equalASCIIFold compares canon, which is lower case, with s.
func equalASCIIFold(canon, s string) bool {
	return canon == s || (len(canon) == len(s) && strings.EqualFold(canon, s))
}
