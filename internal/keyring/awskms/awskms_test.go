package awskms_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/keyring/awskms"
	"github.com/tallystick/tallystick/internal/keyring/kmstest"
)

// endpointEnv names a KMS to test with in place of the server in this file;
// make test/kms sets it to moto's.
const endpointEnv = "TALLYSTICK_TEST_AWS_KMS"

const region = "eu-central-1"

// environment is what the SDK finds: keys that the test's servers accept, and
// nothing of the user's own.
func environment(t *testing.T) {
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true", "AWS_REGION": "",
		"AWS_DEFAULT_REGION": "", "AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull, "AWS_PROFILE": "",
	} {
		t.Setenv(name, value)
	}
}

func newKey(t *testing.T, name, endpoint string) *awskms.Key {
	t.Helper()
	k, err := awskms.New(t.Context(), awskms.Options{Key: name, Region: region, Endpoint: endpoint})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestContract(t *testing.T) {
	environment(t)
	endpoint := os.Getenv(endpointEnv)
	if endpoint == "" {
		server := httptest.NewServer(&service{})
		defer server.Close()
		endpoint = server.URL
	}
	admin := kms.New(kms.Options{
		Region: region, BaseEndpoint: &endpoint, Credentials: credentials.NewStaticCredentialsProvider("test", "test", ""),
	})
	create := func() string {
		out, err := admin.CreateKey(t.Context(), &kms.CreateKeyInput{})
		if err != nil {
			t.Fatalf("%s: %v", endpoint, err)
		}
		return aws.ToString(out.KeyMetadata.Arn)
	}
	name := create()
	kmstest.Run(t, kmstest.Service{
		Key: newKey(t, name, endpoint), Other: newKey(t, create(), endpoint),
		Rotate: func(t *testing.T) {
			if _, err := admin.RotateKeyOnDemand(t.Context(), &kms.RotateKeyOnDemandInput{KeyId: &name}); err != nil {
				t.Fatal(err)
			}
		},
		At: func(t *testing.T, url string) keyring.KMS { return newKey(t, name, url) },
	})
}

// service speaks as much of AWS KMS as the tests use. moto is the better judge
// of that; this one runs everywhere.
type service struct {
	keys kmstest.Keys
	made atomic.Int32
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var in struct {
		KeyId                     string
		Plaintext, CiphertextBlob []byte
		EncryptionContext         map[string]string
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		refuse(w, "SerializationException")
		return
	}
	aad, _ := json.Marshal(in.EncryptionContext) // keys in order
	aad = append(aad, in.KeyId...)
	out := map[string]any{"KeyId": in.KeyId}
	switch r.Header.Get("X-Amz-Target") {
	case "TrentService.CreateKey":
		arn := fmt.Sprintf("arn:aws:kms:%s:123456789012:key/%d", region, s.made.Add(1))
		s.keys.Rotate(arn)
		out["KeyMetadata"] = map[string]any{"Arn": arn, "KeyId": arn}
	case "TrentService.RotateKeyOnDemand":
		s.keys.Rotate(in.KeyId)
	case "TrentService.Encrypt":
		sealed, _, err := s.keys.Encrypt(in.KeyId, in.Plaintext, aad)
		if err != nil {
			refuse(w, "NotFoundException")
			return
		}
		out["CiphertextBlob"] = sealed
	case "TrentService.Decrypt":
		plain, err := s.keys.Decrypt(in.KeyId, in.CiphertextBlob, aad)
		if err != nil {
			refuse(w, "InvalidCiphertextException")
			return
		}
		out["Plaintext"] = plain
	default:
		refuse(w, "UnsupportedOperationException")
		return
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	_ = json.NewEncoder(w).Encode(out)
}

func refuse(w http.ResponseWriter, kind string) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.WriteHeader(http.StatusBadRequest)
	_ = json.NewEncoder(w).Encode(map[string]string{"__type": kind})
}

func TestNames(t *testing.T) {
	environment(t)
	for _, c := range []struct {
		key, region string
		ok          bool
	}{
		{"arn:aws:kms:eu-central-1:123456789012:key/1234abcd", "", true},
		{"1234abcd-12ab-34cd-56ef-1234567890ab", region, true},
		{"1234abcd-12ab-34cd-56ef-1234567890ab", "", false},
		{"alias/tallystick", region, false},
		{"arn:aws:kms:eu-central-1:123456789012:alias/tallystick", "", false},
		{"", region, false},
	} {
		if _, err := awskms.New(t.Context(), awskms.Options{Key: c.key, Region: c.region}); (err == nil) != c.ok {
			t.Errorf("%q in %q: %v", c.key, c.region, err)
		}
	}
}
