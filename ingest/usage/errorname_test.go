package usage

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
)

// Names of errors are kept as providers give them, and text in disguise is not.
func TestErrorNames(t *testing.T) {
	for _, name := range []string{
		"", "invalid_request_error", "rate_limit_exceeded", "insufficient_quota", "context_length_exceeded", "model_not_found", "batch_expired", "overloaded_error",
		"decimal_below_min_value", "tool_use_failed", "NOT_FOUND", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "429", "1210", "1301", "error", "tokens", "server_error",
		"ThrottlingException", "AccessDeniedException", "ServiceQuotaExceededException", "ModelStreamErrorException", "com.amazonaws.bedrock#ValidationException",
		"HTTPException", "DeploymentNotFound", "OperationNotSupported", "content_filter", "ResponsibleAIPolicyViolation", "InvalidAPIKey", "S3Exception",
	} {
		if got := errorName(name); got != name {
			t.Errorf("%q became %q", name, got)
		}
	}
	for n := range 200 {
		text := fmt.Sprintf("the patient qZ7vKx9WbTn3pLdR%d asks about results", n)
		for _, form := range []string{
			base64.StdEncoding.EncodeToString([]byte(text)), base64.RawURLEncoding.EncodeToString([]byte(text[:30])), base64.RawStdEncoding.EncodeToString([]byte(text[5:40])),
			hex.EncodeToString([]byte(text[:24])), strings.ToUpper(hex.EncodeToString([]byte(text[:24]))), text[12:28], strings.ReplaceAll(text[:28], " ", ""), "código",
		} {
			if got := errorName(form); got != otherError {
				t.Errorf("%q is kept", got)
			}
		}
	}
}
