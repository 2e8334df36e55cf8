package http1

// Waiting is for how many sockets somebody waits.
func (s *Server) Waiting() int {
	s.poller.mu.Lock()
	defer s.poller.mu.Unlock()
	return len(s.poller.waits)
}
