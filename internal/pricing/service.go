package pricing

import "strings"

// Service is a service tier that providers price differently. The numbers index tables
// in memory only; books and row ids carry the names.
type Service uint8

// The service tiers.
const (
	Standard Service = iota
	Batch
	Flex
	Priority

	numServices
)

var serviceNames = [numServices]string{"standard", "batch", "flex", "priority"}

// String is the tier's name in books and row ids.
func (s Service) String() string {
	if s < numServices {
		return serviceNames[s]
	}
	return "unknown"
}

// serviceSynonyms maps what providers report to tiers. "auto" is missing on purpose: it is a
// request, and only the response says which tier was billed. So are "scale", "reserved" and
// "provisioned": capacity that is paid for by the hour, not by the token.
var serviceSynonyms = []struct {
	name    string
	service Service
}{
	{"standard", Standard},
	{"default", Standard},   // OpenAI, Bedrock
	{"on_demand", Standard}, // Groq, Vertex
	{"batch", Batch},
	{"batches", Batch},
	{"flex", Flex},
	{"priority", Priority},
}

// ParseService reads a service tier without ASCII case; "" is Standard. An unknown name is
// not ok, and a usage that carries it is unpriced.
func ParseService(name string) (Service, bool) {
	if name == "" {
		return Standard, true
	}
	for i := range serviceSynonyms {
		if s := &serviceSynonyms[i]; s.name == name {
			return s.service, true
		}
	}
	for i := range serviceSynonyms {
		if s := &serviceSynonyms[i]; len(s.name) == len(name) && strings.EqualFold(s.name, name) {
			return s.service, true
		}
	}
	return 0, false
}
