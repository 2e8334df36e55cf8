package api

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

func (s *Server) registerHealth(r *grpc.Server) {
	for _, name := range []string{
		pb.ReportService_ServiceDesc.ServiceName, pb.LedgerService_ServiceDesc.ServiceName, pb.AdminService_ServiceDesc.ServiceName,
	} {
		s.health.SetServingStatus(name, grpc_health_v1.HealthCheckResponse_SERVING)
	}
	grpc_health_v1.RegisterHealthServer(r, s.health)
	reflection.Register(r)
}

// SetServing changes what gRPC health answers, before a shutdown and during a
// start.
func (s *Server) SetServing(serving bool) {
	if serving {
		s.health.Resume()
		return
	}
	s.health.Shutdown()
}

// healthz says that the process lives. It asks nothing else, so that a store
// that is away restarts nobody.
func (s *Server) healthz(w http.ResponseWriter, r *http.Request) {
	s.writeState(w, r, http.StatusOK, map[string]any{"status": "ok", "version": s.opts.Version})
}

// readyState is the body of /readyz.
type readyState struct {
	Status       string            `json:"status"`
	Dependencies []dependencyState `json:"dependencies"`
}

type dependencyState struct {
	Name  string `json:"name"`
	State string `json:"state"`
}

// readyz says whether each dependency answers; 503 when one does not. Anyone
// may ask, so the causes stay in the log.
func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
	defer cancel()
	state := readyState{Status: "ready", Dependencies: make([]dependencyState, len(s.deps.Ready))}
	errs := make([]error, len(s.deps.Ready))
	var asked sync.WaitGroup
	for i, d := range s.deps.Ready {
		asked.Go(func() { errs[i] = d.Check(ctx) })
	}
	asked.Wait()
	code := http.StatusOK
	for i, d := range s.deps.Ready {
		state.Dependencies[i] = dependencyState{d.Name, "ok"}
		if errs[i] != nil {
			s.log.WarnContext(ctx, "not ready", "dependency", d.Name, "err", errs[i])
			state.Dependencies[i].State, state.Status, code = "unavailable", "not ready", http.StatusServiceUnavailable
		}
	}
	if code != http.StatusOK {
		w.Header().Set("Retry-After", "1")
	}
	s.writeState(w, r, code, state)
}

func (s *Server) writeState(w http.ResponseWriter, r *http.Request, code int, v any) {
	s.secure(w.Header(), newRequestID(r.Header.Get(requestIDHeader)))
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		code, v = http.StatusMethodNotAllowed, map[string]string{"status": "method not allowed"}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if r.Method != http.MethodHead {
		_ = json.NewEncoder(w).Encode(v) // the client has gone
	}
}
