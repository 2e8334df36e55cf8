package pricing

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"strings"
)

// Form is how a file of prices is written.
type Form string

// The forms.
const (
	FormBook      Form = "book" // what Marshal writes
	FormLiteLLM   Form = "litellm"
	FormGenAI     Form = "genai-prices"
	FormModelsDev Form = "models.dev"
	FormCSV       Form = "csv"
	FormYAML      Form = "yaml"
)

// Forms are all of them.
func Forms() []Form {
	return []Form{FormBook, FormLiteLLM, FormGenAI, FormModelsDev, FormCSV, FormYAML}
}

// ParseForm is the form of that name. "" is none: Import finds out.
func ParseForm(name string) (Form, error) {
	for _, f := range Forms() {
		if string(f) == name {
			return f, nil
		}
	}
	if name != "" {
		return "", fmt.Errorf("%w: no form %.40q of price lists", ErrImport, name)
	}
	return "", nil
}

// Import reads prices in any form, perhaps in zstd. An empty form is found by the
// file's name and content; when they do not tell, the error is ErrImport. A book
// is taken as it is: of the options it uses none, and its report is empty.
func Import(form Form, fileName string, r io.Reader, o ImportOptions) (*Book, Report, error) {
	data, err := readPlain(r)
	if err != nil {
		return nil, Report{}, err
	}
	if form == "" {
		if form, err = formOf(fileName, data); err != nil {
			return nil, Report{}, err
		}
	}
	in := bytes.NewReader(data)
	switch form {
	case FormBook:
		book, err := ParseBook(data)
		return book, Report{}, err
	case FormLiteLLM:
		return ImportLiteLLM(in, o)
	case FormGenAI:
		return ImportGenAIPrices(in, o)
	case FormModelsDev:
		return ImportModelsDev(in, o)
	case FormCSV:
		return ImportCSV(in, o)
	case FormYAML:
		return ImportYAML(in, o)
	}
	return nil, Report{}, fmt.Errorf("%w: no form %.40q of price lists", ErrImport, form)
}

// formOf tells a form by how the file ends its name, and JSON by what its first
// value holds: a list of providers, providers with models, or models.
func formOf(fileName string, data []byte) (Form, error) {
	switch strings.ToLower(filepath.Ext(strings.TrimSuffix(fileName, ".zst"))) {
	case ".csv":
		return FormCSV, nil
	case ".yaml", ".yml":
		return FormYAML, nil
	}
	if bytes.HasPrefix(data, []byte(`{"format":"tallystick.price-book/`)) {
		return FormBook, nil
	}
	text := bytes.TrimLeft(data, " \t\r\n\ufeff")
	if bytes.HasPrefix(text, []byte("[")) {
		return FormGenAI, nil
	}
	var entries map[string]json.RawMessage
	if err := json.Unmarshal(text, &entries); err != nil {
		return "", fmt.Errorf("%w: the form of %.80q is not known; name it", ErrImport, fileName)
	}
	providers, models := 0, 0
	for _, raw := range entries {
		var e struct {
			Models   map[string]json.RawMessage `json:"models"`
			Provider json.RawMessage            `json:"litellm_provider"`
		}
		if json.Unmarshal(raw, &e) != nil {
			continue
		}
		if e.Models != nil {
			providers++
		}
		if e.Provider != nil {
			models++
		}
	}
	switch {
	case models > providers:
		return FormLiteLLM, nil
	case providers > 0:
		return FormModelsDev, nil
	}
	return "", fmt.Errorf("%w: the form of %.80q is not known; name it", ErrImport, fileName)
}
