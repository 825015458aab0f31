package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// A Daemon is what the server controls. An error that is an *[Error] reaches the
// client as it is; any other is [Internal].
type Daemon interface {
	Status() Status
	Bans() []Ban // by source
	Ban(ctx context.Context, r BanRequest) (Ban, error)
	Unban(ctx context.Context, prefix netip.Prefix) ([]Ban, error) // those that there were
	Allowed() []Allowed
	Allow(ctx context.Context, r AllowRequest) ([]Ban, error) // the bans that it lifted
	Disallow(ctx context.Context, r AllowRequest) error
	Outputs() []Output
}

const (
	// group may use the socket, if it exists.
	group = "portsnare"

	maxRequest  = 64 << 10
	readTimeout = 10 * time.Second
	// writeTimeout bounds an answer; a hundred thousand bans are 12 MB.
	writeTimeout = 30 * time.Second
	maxClients   = 32
)

// Listen makes the socket at path, for root and the group portsnare, with the
// directory above it. A socket that nobody listens on any longer is replaced; one
// that a daemon listens on, or anything else, is an error.
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if err := removeStale(path); err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	// Nobody else may open it before its mode is right.
	before := syscall.Umask(0o177)
	l, err := net.Listen("unix", path)
	syscall.Umask(before)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if err := open(path); err != nil {
		return nil, errors.Join(fmt.Errorf("control socket: %w", err), l.Close())
	}
	return l, nil
}

// removeStale removes a socket that a daemon left behind when it was killed.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("%s is in the way and no socket; remove it", path)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		conn.Close()
		return fmt.Errorf("%s is in use by another daemon", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

// open lets the group use the socket.
func open(path string) error {
	g, err := user.LookupGroup(group)
	if err != nil {
		return os.Chmod(path, 0o600) // root alone, as long as there is no such group
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return fmt.Errorf("group %s: %w", group, err)
	}
	if err := os.Chown(path, -1, gid); err != nil {
		return err
	}
	return os.Chmod(path, 0o660)
}

// Serve answers what comes in at l until ctx ends, and closes it.
func Serve(ctx context.Context, l net.Listener, d Daemon) error {
	s := &http.Server{
		Handler:     handler(d),
		ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: readTimeout,
		MaxHeaderBytes: maxRequest,
		BaseContext:    func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(newLimitListener(l, maxClients)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("control socket: %w", err)
	}
	return nil
}

// handler routes requests to d.
func handler(d Daemon) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { answer(w, d.Status(), nil) })
	mux.HandleFunc("GET /v1/outputs", func(w http.ResponseWriter, _ *http.Request) { answer(w, orEmpty(d.Outputs()), nil) })
	mux.HandleFunc("GET /v1/bans", func(w http.ResponseWriter, _ *http.Request) { answer(w, orEmpty(d.Bans()), nil) })
	mux.HandleFunc("POST /v1/bans", func(w http.ResponseWriter, r *http.Request) {
		serve(w, r, d.Ban)
	})
	mux.HandleFunc("DELETE /v1/bans/{source...}", func(w http.ResponseWriter, r *http.Request) {
		prefix, err := ParsePrefix(r.PathValue("source"))
		if err != nil {
			answer(w, nil, &Error{BadRequest, err.Error()})
			return
		}
		bans, err := d.Unban(r.Context(), prefix)
		answer(w, orEmpty(bans), err)
	})
	mux.HandleFunc("GET /v1/allowed", func(w http.ResponseWriter, _ *http.Request) { answer(w, orEmpty(d.Allowed()), nil) })
	mux.HandleFunc("POST /v1/allowed", func(w http.ResponseWriter, r *http.Request) {
		serve(w, r, func(ctx context.Context, request AllowRequest) ([]Ban, error) {
			bans, err := d.Allow(ctx, request)
			return orEmpty(bans), err
		})
	})
	mux.HandleFunc("DELETE /v1/allowed/{prefix...}", func(w http.ResponseWriter, r *http.Request) {
		prefix, err := ParsePrefix(r.PathValue("prefix"))
		if err != nil {
			answer(w, nil, &Error{BadRequest, err.Error()})
			return
		}
		answer(w, struct{}{}, d.Disallow(r.Context(), AllowRequest{Prefix: prefix}))
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		answer(w, nil, &Error{NotFound, "no such request: " + r.Method + " " + r.URL.Path})
	})
	return mux
}

// orEmpty has JSON show an empty list as one.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// serve reads a request and answers it.
func serve[Q, A any](w http.ResponseWriter, r *http.Request, do func(context.Context, Q) (A, error)) {
	var request Q
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(&request)
	if err == nil && decoder.Decode(new(json.RawMessage)) != io.EOF {
		err = errors.New("more than one request in a body")
	}
	if err != nil {
		answer(w, nil, &Error{BadRequest, err.Error()})
		return
	}
	got, err := do(r.Context(), request)
	answer(w, got, err)
}

// statuses are the HTTP statuses of codes.
var statuses = map[Code]int{
	BadRequest:  http.StatusBadRequest,
	NeverBanned: http.StatusConflict,
	NotBanning:  http.StatusConflict,
	TooMany:     http.StatusInsufficientStorage,
	NoOutput:    http.StatusBadGateway,
	NotFound:    http.StatusNotFound,
	Internal:    http.StatusInternalServerError,
}

// answer writes what was asked for, or the error.
func answer(w http.ResponseWriter, body any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		fault, ok := errors.AsType[*Error](err)
		if !ok {
			fault = &Error{Internal, err.Error()}
		}
		w.WriteHeader(statuses[fault.Code])
		body = fault
	}
	_ = json.NewEncoder(w).Encode(body) // a client that has gone needs no answer
}

// ParsePrefix reads an address or a prefix. An IPv4-mapped one is IPv4, and host
// bits are an error, because they say that something else was meant.
func ParsePrefix(text string) (netip.Prefix, error) {
	addr, err := netip.ParseAddr(text)
	if err == nil {
		addr = addr.Unmap().WithZone("")
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return prefix, fmt.Errorf("%q is neither an address nor a prefix such as 192.0.2.0/24", text)
	case prefix.Addr().Is4In6() && prefix.Bits() >= 96:
		prefix = netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()-96)
	}
	if masked := prefix.Masked(); masked != prefix {
		return prefix, fmt.Errorf("%s has bits beyond its length; %s is the network, %s the host", text, masked, prefix.Addr())
	}
	return prefix, nil
}
