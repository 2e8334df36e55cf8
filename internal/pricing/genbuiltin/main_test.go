package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// The committed book is what the generator makes of the committed list.
func TestBuiltinIsGenerated(t *testing.T) {
	out := filepath.Join(t.TempDir(), "builtin.jsonl")
	if err := run("../testdata/litellm_model_prices_2026-08-01.json.zst", out); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("../builtin.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("builtin.jsonl is stale: run go generate in internal/pricing")
	}
}

func TestUndated(t *testing.T) {
	for in, want := range map[string]string{
		"openai/gpt-4o-2024-08-06":                       "openai/gpt-4o",
		"anthropic/claude-sonnet-4-5-20250929":           "anthropic/claude-sonnet-4-5",
		"vertex_ai/claude-sonnet-4-5@20250929":           "vertex_ai/claude-sonnet-4-5",
		"bedrock/anthropic.claude-3-haiku-20240307-v1:0": "bedrock/anthropic.claude-3-haiku-v1:0",
		"openai/gpt-4-0613":                              "openai/gpt-4-0613",
	} {
		if got := undated(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
