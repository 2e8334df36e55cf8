package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/keyring"
)

// Errors that what stands in Deps may return; any other becomes "internal", and
// its text goes to the log only.
var (
	// ErrNotFound: what was asked for does not exist. 404.
	ErrNotFound = errors.New("api: not found")
	// ErrConflict: what is there already stands against it; the text says what. 409.
	ErrConflict = errors.New("api: conflict")
	// ErrUnavailable: a store or a part of the pipeline is away. 503, come again.
	ErrUnavailable = errors.New("api: unavailable")
	// ErrDestroyed: the key that opens it is destroyed, for good. 410.
	ErrDestroyed = errors.New("api: the key is destroyed")
)

// InvalidError says that fields of the request break rules. 400.
type InvalidError struct{ Violations []Violation }

// Violation is one field that breaks a rule.
type Violation struct {
	Field   string `json:"field"` // as in the request, such as "window.end"
	Rule    string `json:"rule"`  // such as "range", "required", "unknown"
	Message string `json:"message"`
}

// Error lists the violations.
func (e *InvalidError) Error() string {
	parts := make([]string, len(e.Violations))
	for i, v := range e.Violations {
		parts[i] = v.Field + ": " + v.Message
	}
	return strings.Join(parts, "; ")
}

// invalid is an InvalidError of one field.
func invalid(field, rule, format string, args ...any) error {
	return &InvalidError{[]Violation{{field, rule, fmt.Sprintf(format, args...)}}}
}

var (
	errForbidden      = errors.New("the credential may not act for this tenant")
	errForbiddenScope = errors.New("the credential lacks a scope")
	errNotOperator    = errors.New("the credential may not act for all tenants")
	errUnimplemented  = errors.New("this process does not serve it")
	errPanic          = errors.New("api: a handler panicked")
	errMediaType      = errors.New("the body must be application/json")
)

// Reasons of errors: ErrorInfo.reason in upper case, and the end of a problem's
// type in lower case.
const (
	reasonUnauthenticated = "unauthenticated"
	reasonForbidden       = "forbidden"
	reasonInvalid         = "invalid_argument"
	reasonMalformed       = "malformed_body"
	reasonNotFound        = "not_found"
	reasonDestroyed       = "destroyed"
	reasonConflict        = "conflict"
	reasonMethod          = "method_not_allowed"
	reasonTooLarge        = "body_too_large"
	reasonMediaType       = "unsupported_media_type"
	reasonUnavailable     = "unavailable"
	reasonTimeout         = "timeout"
	reasonCancelled       = "cancelled"
	reasonUnimplemented   = "unimplemented"
	reasonInternal        = "internal"
)

// failure is an error translated for the outside.
type failure struct {
	code       codes.Code
	http       int
	reason     string
	detail     string
	violations []Violation
	retry      bool
	internal   bool // the cause must be logged, and only there
}

// errorDomain is the domain of the ErrorInfo of every status.
const errorDomain = "tallystick"

// statusClientClosed is what a request that its client gave up is logged as.
const statusClientClosed = 499

// translate is the one place where errors become answers.
func translate(err error) failure {
	var bad *InvalidError
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &bad):
		return failure{code: codes.InvalidArgument, http: 400, reason: reasonInvalid, detail: bad.Error(), violations: bad.Violations}
	case errors.As(err, &tooLarge):
		return failure{code: codes.InvalidArgument, http: 413, reason: reasonTooLarge, detail: fmt.Sprintf("a body has at most %d bytes", tooLarge.Limit)}
	case errors.Is(err, errMediaType):
		return failure{code: codes.InvalidArgument, http: 415, reason: reasonMediaType, detail: err.Error()}
	case errors.Is(err, authn.ErrUnauthenticated):
		return failure{code: codes.Unauthenticated, http: 401, reason: reasonUnauthenticated, detail: "a bearer token is needed: it is missing, wrong or expired"}
	case errors.Is(err, authn.ErrUnavailable):
		return failure{code: codes.Unavailable, http: 503, reason: reasonUnavailable, detail: "credentials cannot be verified now; ask again", retry: true, internal: true}
	case errors.Is(err, keyring.ErrNoKey): // also where it is why an audit row cannot be written
		return failure{code: codes.NotFound, http: 404, reason: reasonNotFound, detail: "there is no such tenant"}
	case errors.Is(err, audit.ErrUnwritten):
		return failure{code: codes.Unavailable, http: 503, reason: reasonUnavailable, detail: "it cannot be audited now, so it is not done; ask again", retry: true, internal: true}
	case errors.Is(err, errForbidden), errors.Is(err, errForbiddenScope), errors.Is(err, errNotOperator):
		return failure{code: codes.PermissionDenied, http: 403, reason: reasonForbidden, detail: err.Error()}
	case errors.Is(err, ErrNotFound):
		return failure{code: codes.NotFound, http: 404, reason: reasonNotFound, detail: "there is no such thing"}
	case errors.Is(err, ErrConflict):
		return failure{code: codes.AlreadyExists, http: 409, reason: reasonConflict, detail: err.Error()}
	case errors.Is(err, ErrDestroyed):
		return failure{code: codes.FailedPrecondition, http: 410, reason: reasonDestroyed, detail: "the key that would open it is destroyed"}
	case errors.Is(err, errUnimplemented):
		return failure{code: codes.Unimplemented, http: 501, reason: reasonUnimplemented, detail: err.Error()}
	case errors.Is(err, context.DeadlineExceeded):
		return failure{code: codes.DeadlineExceeded, http: 504, reason: reasonTimeout, detail: "the answer took too long", retry: true, internal: true}
	case errors.Is(err, context.Canceled):
		return failure{code: codes.Canceled, http: statusClientClosed, reason: reasonCancelled, detail: "the request was given up"}
	case errors.Is(err, ErrUnavailable):
		return failure{code: codes.Unavailable, http: 503, reason: reasonUnavailable, detail: "a store is away; ask again", retry: true, internal: true}
	}
	if st, ok := status.FromError(err); ok && st.Code() != codes.Unknown {
		return translateStatus(st)
	}
	return failure{code: codes.Internal, http: 500, reason: reasonInternal, detail: "the server failed; its log has the cause under the request's id", internal: true}
}

// translateStatus takes over what the gateway and the gRPC library say of a
// request before a service sees it.
func translateStatus(st *status.Status) failure {
	f := failure{code: st.Code(), detail: st.Message()}
	switch st.Code() {
	case codes.InvalidArgument:
		f.http, f.reason = 400, reasonMalformed
		// protobuf varies a blank of its messages, so that nobody relies on them.
		f.detail = strings.TrimPrefix(strings.ReplaceAll(f.detail, "\u00a0", " "), "proto: ")
		if strings.Contains(f.detail, "request body too large") {
			f.http, f.reason, f.detail = 413, reasonTooLarge, "the body is too large"
		}
	case codes.NotFound:
		f.http, f.reason = 404, reasonNotFound
	case codes.Unimplemented:
		f.http, f.reason = 501, reasonUnimplemented
	case codes.Unauthenticated:
		f.http, f.reason = 401, reasonUnauthenticated
	default:
		f.http, f.reason, f.internal = 500, reasonInternal, true
		f.detail = "the server failed; its log has the cause under the request's id"
	}
	return f
}

// status is the failure as gRPC gives it: google.rpc.Status with ErrorInfo, and
// BadRequest for violations.
func (f *failure) status(requestID string) *status.Status {
	details := []protoadapt.MessageV1{protoadapt.MessageV1Of(&errdetails.ErrorInfo{
		Reason: strings.ToUpper(f.reason), Domain: errorDomain, Metadata: map[string]string{"request_id": requestID},
	})}
	if len(f.violations) > 0 {
		bad := &errdetails.BadRequest{}
		for _, v := range f.violations {
			bad.FieldViolations = append(bad.FieldViolations, &errdetails.BadRequest_FieldViolation{
				Field: v.Field, Description: v.Message, Reason: strings.ToUpper(v.Rule),
			})
		}
		details = append(details, protoadapt.MessageV1Of(bad))
	}
	st := status.New(f.code, f.detail)
	if with, err := st.WithDetails(details...); err == nil {
		return with
	}
	return st
}
