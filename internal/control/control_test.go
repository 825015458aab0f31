package control

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var (
	source  = netip.MustParsePrefix("192.0.2.1/32")
	network = netip.MustParsePrefix("2001:db8::/64")
	until   = time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)
)

// fakeDaemon bans everybody but one, and writes down what it is asked.
type fakeDaemon struct{ asked []string }

func (*fakeDaemon) Status() Status {
	return Status{Version: "1.2.3", PID: 42, Mode: "stealth", Bans: 2}
}

func (*fakeDaemon) Bans() []Ban {
	return []Ban{{Source: source, Until: &until, Origin: "portsnare", Reason: "probe to a trap port"}, {Source: network, Origin: "operator"}}
}

func (f *fakeDaemon) Ban(_ context.Context, r BanRequest) (Ban, error) {
	f.asked = append(f.asked, "ban "+r.Source.String()+" "+time.Duration(r.For).String()+" "+r.Reason)
	if r.Source == network {
		return Ban{}, &Error{NeverBanned, "2001:db8::/64 is never banned: gateway"}
	}
	return Ban{Source: r.Source, Origin: "operator"}, nil
}

func (f *fakeDaemon) Unban(_ context.Context, prefix netip.Prefix) ([]Ban, error) {
	f.asked = append(f.asked, "unban "+prefix.String())
	if prefix == network {
		return nil, errors.New("disk full")
	}
	return nil, nil
}

func (*fakeDaemon) Allowed() []Allowed { return []Allowed{{Prefix: source, Why: "own address"}} }

func (f *fakeDaemon) Allow(_ context.Context, r AllowRequest) ([]Ban, error) {
	f.asked = append(f.asked, "allow "+r.Prefix.String())
	return []Ban{{Source: r.Prefix, Origin: "portsnare"}}, nil
}

func (f *fakeDaemon) Disallow(_ context.Context, r AllowRequest) error {
	f.asked = append(f.asked, "disallow "+r.Prefix.String())
	return nil
}

func (*fakeDaemon) Outputs() []Output { return nil }

// serve has a daemon listen until the test ends.
func startServer(t *testing.T) (*Client, *fakeDaemon, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run", "control.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	d := new(fakeDaemon)
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, d) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return NewClient(path), d, path
}

func TestClientAndServer(t *testing.T) {
	client, daemon, _ := startServer(t)
	ctx := t.Context()
	if got, err := client.Status(ctx); err != nil || got.PID != 42 || got.Version != "1.2.3" {
		t.Errorf("Status = %+v, %v", got, err)
	}
	bans, err := client.Bans(ctx)
	if diff := cmp.Diff(daemon.Bans(), bans, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" || err != nil {
		t.Errorf("Bans (-want +got)\n%s%v", diff, err)
	}
	if outputs, err := client.Outputs(ctx); err != nil || outputs == nil {
		t.Errorf("Outputs = %v, %v; want an empty list", outputs, err)
	}
	if all, err := client.Allowed(ctx); err != nil || len(all) != 1 || all[0].Why != "own address" {
		t.Errorf("Allowed = %v, %v", all, err)
	}
	if ban, err := client.Ban(ctx, BanRequest{Source: source, For: Duration(90 * time.Minute), Reason: "loud"}); err != nil || ban.Source != source {
		t.Errorf("Ban = %v, %v", ban, err)
	}
	var fault *Error
	if _, err := client.Ban(ctx, BanRequest{Source: network}); !errors.As(err, &fault) || fault.Code != NeverBanned || !strings.Contains(fault.Text, "gateway") {
		t.Errorf("Ban of a gateway: %v", err)
	}
	if _, err := client.Unban(ctx, source); err != nil {
		t.Error(err)
	}
	if _, err := client.Unban(ctx, network); !errors.As(err, &fault) || fault.Code != Internal || fault.Text != "disk full" {
		t.Errorf("Unban that fails: %v", err)
	}
	if lifted, err := client.Allow(ctx, AllowRequest{Prefix: network}); err != nil || len(lifted) != 1 {
		t.Errorf("Allow = %v, %v", lifted, err)
	}
	if err := client.Disallow(ctx, AllowRequest{Prefix: network}); err != nil {
		t.Error(err)
	}
	want := []string{
		"ban 192.0.2.1/32 1h30m0s loud", "ban 2001:db8::/64 0s ", "unban 192.0.2.1/32", "unban 2001:db8::/64",
		"allow 2001:db8::/64", "disallow 2001:db8::/64",
	}
	if diff := cmp.Diff(want, daemon.asked); diff != "" {
		t.Errorf("the daemon was asked (-want +got)\n%s", diff)
	}
}

// Whoever speaks to the socket without our client gets an answer too.
func TestBadRequests(t *testing.T) {
	client, daemon, _ := startServer(t)
	tests := map[string]struct {
		method, path, body string
		status             int
		want               string
	}{
		"no such path":     {"GET", "/v2/bans", "", 404, "no such request: GET /v2/bans"},
		"no such method":   {"PATCH", "/v1/bans", "", 404, "no such request"},
		"no JSON":          {"POST", "/v1/bans", "ban 192.0.2.1", 400, "invalid character"},
		"nothing":          {"POST", "/v1/bans", "", 400, "EOF"},
		"an unknown field": {"POST", "/v1/bans", `{"source":"192.0.2.1/32","until":1}`, 400, "unknown field"},
		"two requests":     {"POST", "/v1/bans", `{"source":"192.0.2.1/32"}{}`, 400, "more than one"},
		"a bad duration":   {"POST", "/v1/bans", `{"source":"192.0.2.1/32","for":"-1h"}`, 400, "negative"},
		"too long":         {"POST", "/v1/bans", `{"reason":"` + strings.Repeat("x", maxRequest) + `"}`, 400, "too large"},
		"no address":       {"DELETE", "/v1/bans/example.net", "", 400, "neither an address nor a prefix"},
		"host bits":        {"DELETE", "/v1/bans/192.0.2.1/24", "", 400, "192.0.2.0/24 is the network"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			request, err := http.NewRequestWithContext(t.Context(), test.method, "http://x"+test.path, strings.NewReader(test.body))
			if err != nil {
				t.Fatal(err)
			}
			response, err := client.http.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			text, err := io.ReadAll(response.Body)
			if err != nil || response.StatusCode != test.status || !strings.Contains(string(text), test.want) {
				t.Errorf("%d %s %v, want %d and %q", response.StatusCode, text, err, test.status, test.want)
			}
		})
	}
	if len(daemon.asked) > 0 {
		t.Errorf("the daemon was asked %q", daemon.asked)
	}
}

func TestParsePrefix(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.1":               "192.0.2.1/32",
		"192.0.2.0/24":            "192.0.2.0/24",
		"::ffff:192.0.2.1":        "192.0.2.1/32",
		"::ffff:192.0.2.0/120":    "192.0.2.0/24",
		"2001:db8::1":             "2001:db8::1/128",
		"fe80::1%eth0":            "fe80::1/128",
		"0.0.0.0/0":               "0.0.0.0/0",
		"192.0.2.1/24":            "",
		"192.0.2.256":             "",
		"scanner.example.net":     "",
		"":                        "",
		"2001:db8::/129":          "",
		"192.0.2.0/24/24":         "",
		"192.0.2.1 192.0.2.2":     "",
		"::ffff:192.0.2.1/120":    "",
		"192.0.2.0/255.255.255.0": "",
	} {
		got, err := ParsePrefix(text)
		if want == "" && err == nil || want != "" && (err != nil || got.String() != want) {
			t.Errorf("ParsePrefix(%q) = %v, %v; want %q", text, got, err, want)
		}
	}
}

func TestListen(t *testing.T) {
	t.Run("after a kill", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "control.sock")
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		l.Close()
		again, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		again.Close()
	})
	t.Run("beside another daemon", func(t *testing.T) {
		_, _, path := startServer(t)
		if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "in use by another daemon") {
			t.Errorf("Listen = %v", err)
		}
	})
	t.Run("where a file is", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "control.sock")
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "no socket") {
			t.Errorf("Listen = %v", err)
		}
		if text, err := os.ReadFile(path); string(text) != "precious" {
			t.Errorf("the file is %q (%v)", text, err)
		}
	})
	t.Run("others may not use it", func(t *testing.T) {
		_, _, path := startServer(t)
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm()&0o007 != 0 {
			t.Errorf("mode %v, %v; want nothing for others", info.Mode(), err)
		}
	})
}

func TestClientSaysWhatToDo(t *testing.T) {
	_, err := NewClient(filepath.Join(t.TempDir(), "nobody.sock")).Bans(t.Context())
	if err == nil || !strings.Contains(err.Error(), "is portsnared running?") {
		t.Errorf("without a daemon: %v", err)
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "liar.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 1024))
			_, _ = io.WriteString(conn, "HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops")
			conn.Close()
		}
	}()
	if _, err := NewClient(l.Addr().String()).Bans(t.Context()); err == nil || !strings.Contains(err.Error(), "500 Oops") {
		t.Errorf("something else at the socket: %v", err)
	}
}

// Clients that connect and say nothing keep nobody out for long, nor grow without
// bound.
func TestIdleClientsAreBounded(t *testing.T) {
	client, _, path := startServer(t)
	var idle []net.Conn
	for range 2 * maxClients {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		idle = append(idle, conn)
	}
	if _, err := client.Status(t.Context()); err == nil {
		t.Error("more clients were served than there are slots")
	}
	for _, conn := range idle {
		conn.Close()
	}
	for deadline := time.Now().Add(readTimeout); ; {
		_, err := client.Status(t.Context())
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("idle clients have gone, and still: %v", err)
		}
	}
}
