package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/outputs/outputapi"
)

// serve returns a module that posts to a server, which answers with statuses one
// after the other and then with 200, and what arrived there.
func serve(t *testing.T, statuses ...int) (*webhook, func() []string) {
	t.Helper()
	var texts []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body struct{ Text string }
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil || r.Method != http.MethodPost {
			t.Errorf("%s: %v", r.Method, err)
		}
		texts = append(texts, body.Text)
		if len(statuses) > 0 {
			w.WriteHeader(statuses[0])
			statuses = statuses[1:]
		}
	}))
	t.Cleanup(server.Close)
	settings, err := json.Marshal(map[string]string{"url": server.URL})
	if err != nil {
		t.Fatal(err)
	}
	w := &webhook{}
	if err := w.Configure(t.Context(), outputapi.Configuration{Settings: settings}); err != nil {
		t.Fatal(err)
	}
	return w, func() []string { server.Close(); return texts }
}

func scan(sequence uint64) detector.Event {
	return detector.Event{
		Sequence: sequence, Triggered: detector.True, Blocked: detector.True,
		Probe: detector.Probe{
			Source: netip.MustParseAddrPort("203.0.113.7:40000"), Target: netip.MustParseAddrPort("192.0.2.1:23"),
			Proto: detector.TCP, Technique: detector.TechniqueSYN,
		},
	}
}

func TestScansArePosted(t *testing.T) {
	w, texts := serve(t)
	named, unnoticed := scan(2), scan(3)
	named.Host, named.Blocked = "<!channel>.example", detector.False
	unnoticed.Triggered = detector.False
	events := []detector.Event{scan(1), named, unnoticed, {Sequence: 4, Action: detector.DaemonStopped}}
	if err := w.Deliver(t.Context(), events); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"203.0.113.7 scanned 192.0.2.1 port 23/TCP (SYN): it is kept out",
		"203.0.113.7 (&lt;!channel&gt;.example) scanned 192.0.2.1 port 23/TCP (SYN): it could not be kept out",
	}
	if got := texts(); !slices.Equal(got, want) {
		t.Errorf("posted %q, want %q", got, want)
	}
}

func TestServerIsAway(t *testing.T) {
	w, texts := serve(t, 200, 503)
	err := w.Deliver(t.Context(), []detector.Event{scan(1), scan(2), scan(3)})
	partial, ok := errors.AsType[*outputapi.Partial](err)
	if !ok || partial.Through != 1 || partial.Err == nil {
		t.Fatalf("error %#v, want one that says that event 1 was taken", err)
	}
	if err := w.Deliver(t.Context(), []detector.Event{scan(2), scan(3)}); err != nil {
		t.Errorf("the server is back: %v", err)
	}
	if got := texts(); len(got) != 4 { // 1, 2 refused, 2, 3
		t.Errorf("%d posts, want 4", len(got))
	}
	if err := w.Deliver(t.Context(), []detector.Event{scan(4)}); err == nil || strings.Contains(err.Error(), w.url) {
		t.Errorf("the server is gone: error %v, want one that does not tell the address", err)
	}
}

func TestServerRejects(t *testing.T) {
	w, _ := serve(t, 200, 400)
	err := w.Deliver(t.Context(), []detector.Event{scan(1), scan(2), scan(3)})
	partial, ok := errors.AsType[*outputapi.Partial](err)
	if !ok || partial.Through != 3 || partial.Err != nil || len(partial.Rejected) != 1 || partial.Rejected[0].Sequence != 2 {
		t.Errorf("error %#v, want one that rejects event 2 of 3", err)
	}
}

func TestConfigure(t *testing.T) {
	file := filepath.Join(t.TempDir(), "url")
	if err := os.WriteFile(file, []byte("https://192.0.2.1/secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		settings string
		want     string // the key that is at fault, empty if none is
	}{
		"address":         {`{"url":"http://192.0.2.1/"}`, ""},
		"file":            {`{"url_file":"` + file + `"}`, ""},
		"neither":         {`{}`, "url"},
		"no web address":  {`{"url":"ftp://192.0.2.1/"}`, "url"},
		"no such file":    {`{"url_file":"` + file + `x"}`, "url_file"},
		"a key not known": {`{"uri":"http://192.0.2.1/"}`, "uri"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			err := (&webhook{}).Configure(t.Context(), outputapi.Configuration{Settings: json.RawMessage(tt.settings)})
			faults, _ := errors.AsType[outputapi.Faults](err)
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (len(faults) != 1 || faults[0].Key != tt.want):
				t.Errorf("error %#v, want a fault in %s", err, tt.want)
			}
		})
	}
}
