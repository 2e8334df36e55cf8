package main

// models is the selection, in the book's own names.
var models = []string{
	"openai/gpt-3.5-turbo", "openai/gpt-4", "openai/gpt-4-turbo",
	"openai/gpt-4o", "openai/gpt-4o-mini", "openai/gpt-4o-audio-preview",
	"openai/gpt-4.1", "openai/gpt-4.1-mini", "openai/gpt-4.1-nano",
	"openai/gpt-5", "openai/gpt-5-mini", "openai/gpt-5-nano", "openai/gpt-5.1", "openai/gpt-5.2",
	"openai/gpt-5.4", "openai/gpt-5.4-mini", "openai/gpt-5.5",
	"openai/o1", "openai/o3", "openai/o3-mini", "openai/o4-mini",
	"openai/text-embedding-3-small", "openai/text-embedding-3-large",

	"azure/gpt-4", "azure/gpt-35-turbo", "azure/gpt-4o", "azure/gpt-4o-mini", "azure/gpt-4.1",
	"azure/gpt-4.1-mini", "azure/gpt-5", "azure/gpt-5-mini",

	"anthropic/claude-3-haiku-20240307", "anthropic/claude-3-opus-20240229",
	"anthropic/claude-3-7-sonnet-20250219", "anthropic/claude-sonnet-4-20250514",
	"anthropic/claude-opus-4-20250514", "anthropic/claude-opus-4-1", "anthropic/claude-haiku-4-5",
	"anthropic/claude-sonnet-4-5", "anthropic/claude-opus-4-5", "anthropic/claude-opus-4-6",
	"anthropic/claude-sonnet-4-6", "anthropic/claude-opus-4-7", "anthropic/claude-sonnet-5",
	"anthropic/claude-opus-5",

	"gemini/gemini-2.0-flash", "gemini/gemini-2.5-pro", "gemini/gemini-2.5-flash",
	"gemini/gemini-2.5-flash-lite", "gemini/gemini-3-pro-preview", "gemini/gemini-3.1-pro-preview",
	"gemini/gemini-3.5-flash",
	"vertex_ai/gemini-2.5-pro", "vertex_ai/gemini-2.5-flash", "vertex_ai/claude-sonnet-4-5",

	"deepseek/deepseek-chat", "deepseek/deepseek-reasoner", "deepseek/deepseek-r1", "deepseek/deepseek-v3",
	"deepseek/deepseek-v4-flash", "deepseek/deepseek-v4-pro",

	"mistral/mistral-large-latest", "mistral/mistral-medium-latest", "mistral/mistral-small-latest",
	"mistral/codestral-latest", "mistral/open-mixtral-8x7b",

	"xai/grok-3", "xai/grok-3-mini", "xai/grok-4", "xai/grok-4.3", "xai/grok-code-fast-1",

	"amazon_nova/nova-micro-v1", "amazon_nova/nova-lite-v1", "amazon_nova/nova-pro-v1", "amazon_nova/nova-premier-v1",

	"cohere/command-r", "cohere/command-r-plus", "cohere/command-a-03-2025",

	"moonshot/kimi-latest", "moonshot/kimi-k2-0905-preview", "moonshot/kimi-k2-turbo-preview",
	"moonshot/kimi-k2-thinking", "moonshot/kimi-k2.5", "moonshot/moonshot-v1-128k",

	"groq/llama-3.1-8b-instant", "groq/llama-3.3-70b-versatile", "groq/openai/gpt-oss-120b",
	"dashscope/qwen3-max", "dashscope/qwen3-coder-plus",

	"bedrock/anthropic.claude-3-haiku-20240307-v1:0", "bedrock/anthropic.claude-haiku-4-5-20251001-v1:0",
	"bedrock/anthropic.claude-sonnet-4-5-20250929-v1:0", "bedrock/us.anthropic.claude-sonnet-4-5-20250929-v1:0",
	"bedrock/amazon.nova-micro-v1:0", "bedrock/amazon.nova-lite-v1:0", "bedrock/amazon.nova-pro-v1:0",
	"bedrock/meta.llama3-1-70b-instruct-v1:0", "bedrock/meta.llama3-3-70b-instruct-v1:0",
	"bedrock/us.meta.llama3-3-70b-instruct-v1:0", "bedrock/meta.llama4-maverick-17b-instruct-v1:0",
	"bedrock/openai.gpt-oss-120b-1:0",
}
