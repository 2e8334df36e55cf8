package report

import (
	"slices"
	"strings"
)

// tagPrefix begins the name of a tag's dimension.
const tagPrefix = "tag:"

// dimensions are the names of all dimensions but tags.
var dimensions = []string{
	"provider", "model", "operation", "region", "service_tier", "status", "team", "service", "feature", "agent",
	"user_pseudonym", "end_customer", "environment", "gpu_state", "purchase_option",
}

// Dimensions are the names of all dimensions but tags, which are "tag:KEY".
func Dimensions() []string { return slices.Clone(dimensions) }

// Dimension is what entries are grouped and filtered by.
type Dimension struct {
	Name string // one of Dimensions, or "tag"
	Key  string // of a tag
}

// IsTag reports whether the dimension is a tag.
func (d Dimension) IsTag() bool { return d.Name == "tag" }

// ParseDimension reads the name of a dimension. The error is a *FieldError that
// names field.
func ParseDimension(field, s string) (Dimension, error) {
	if key, isTag := strings.CutPrefix(s, tagPrefix); isTag {
		if key == "" {
			return Dimension{}, fail(field, "tag: needs a key")
		}
		if err := checkText(field, key); err != nil {
			return Dimension{}, err
		}
		return Dimension{Name: "tag", Key: key}, nil
	}
	if !slices.Contains(dimensions, s) {
		return Dimension{}, fail(field, "one of %s, or tag:KEY", strings.Join(dimensions, ", "))
	}
	return Dimension{Name: s}, nil
}
