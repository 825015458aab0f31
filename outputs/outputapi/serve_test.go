package outputapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/outputs/outputapi"
	"github.com/portsnare/portsnare/outputs/outputapi/outputv1"
)

func TestDescribe(t *testing.T) {
	client, _ := start(t, moduleCommand(t, "recorder"), hclog.NewNullLogger())
	got, err := client.Describe(t.Context())
	want := outputapi.Description{
		Info:      (&recorder{}).Info(),
		Abilities: []outputapi.Ability{outputapi.Delivers, outputapi.KeepsBans, outputapi.Flushes, outputapi.WatchesBans},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("unexpected description: %v (-want +got):\n%s", err, diff)
	}
}

func TestConfigure(t *testing.T) {
	t.Run("faults", func(t *testing.T) {
		client, _ := start(t, moduleCommand(t, "recorder"), hclog.NewNullLogger())
		err := client.Configure(t.Context(), outputapi.Configuration{Settings: json.RawMessage(`{"panik":"now"}`)})
		want := outputapi.Faults{{Key: "panik", Text: "unknown key"}}
		if got, ok := errors.AsType[outputapi.Faults](err); !ok || !cmp.Equal(got, want) {
			t.Errorf("error %#v, want %#v", err, want)
		}
		wantCode(t, client.Deliver(t.Context(), "boot", eventsTo(1)), codes.FailedPrecondition)
	})
	t.Run("twice", func(t *testing.T) {
		client := startRecorder(t, "{}")
		wantCode(t, client.Configure(t.Context(), outputapi.Configuration{}), codes.FailedPrecondition)
	})
	t.Run("no object", func(t *testing.T) {
		client, _ := start(t, moduleCommand(t, "recorder"), hclog.NewNullLogger())
		for _, settings := range []string{"[]", "null", "{", `"x"`} {
			err := client.Configure(t.Context(), outputapi.Configuration{Settings: json.RawMessage(settings)})
			wantCode(t, err, codes.InvalidArgument)
		}
	})
	t.Run("relative state directory", func(t *testing.T) {
		client, _ := start(t, moduleCommand(t, "recorder"), hclog.NewNullLogger())
		wantCode(t, client.Configure(t.Context(), outputapi.Configuration{StateDir: "state"}), codes.InvalidArgument)
	})
}

func TestNothingBeforeConfigure(t *testing.T) {
	client, _ := start(t, moduleCommand(t, "recorder"), hclog.NewNullLogger())
	_, setting := client.SetBans(t.Context(), bansOf(1))
	_, changing := client.ChangeBans(t.Context(), bansOf(1), nil)
	calls := map[string]error{
		"Deliver":    client.Deliver(t.Context(), "boot", eventsTo(1)),
		"SetBans":    setting,
		"ChangeBans": changing,
		"Flush":      client.Flush(t.Context()),
		"WatchBans":  client.WatchBans(t.Context(), func(outputapi.BanChange) error { return nil }),
	}
	for call, err := range calls {
		t.Run(call, func(t *testing.T) { wantCode(t, err, codes.FailedPrecondition) })
	}
}

func TestDeliver(t *testing.T) {
	t.Run("all", func(t *testing.T) {
		client := startRecorder(t, "{}")
		wantCode(t, client.Flush(t.Context()), codes.Unknown) // nothing to put away
		if err := client.Deliver(t.Context(), "boot", eventsTo(2500)); err != nil {
			t.Error(err)
		}
		if err := client.Flush(t.Context()); err != nil {
			t.Error(err)
		}
	})
	tests := map[string]struct {
		settings string
		want     outputapi.Partial
		wantErr  string // a part of the error; empty: none
	}{
		"some": {
			settings: `{"through":7}`,
			want:     outputapi.Partial{Through: 7}, wantErr: "the server is away",
		},
		"some in a later request": {
			settings: `{"through":1500}`,
			want:     outputapi.Partial{Through: 1500}, wantErr: "the server is away",
		},
		"all but one": {
			settings: `{"reject":3}`,
			want:     outputapi.Partial{Through: 20, Rejected: []outputapi.Rejection{{Sequence: 3, Reason: "not to my taste"}}},
		},
		"some, and one of them never": {
			settings: `{"through":5,"reject":3}`,
			want:     outputapi.Partial{Through: 5, Rejected: []outputapi.Rejection{{Sequence: 3, Reason: "not to my taste"}}},
			wantErr:  "the server is away",
		},
		"rejection of what was not accepted": {
			settings: `{"through":5,"reject":6}`,
			want:     outputapi.Partial{Through: 5}, wantErr: "rejected event 6, which it did not accept",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			last := max(20, tt.want.Through+5)
			if tt.wantErr == "" {
				last = tt.want.Through
			}
			err := startRecorder(t, tt.settings).Deliver(t.Context(), "boot", eventsTo(last))
			got, ok := errors.AsType[*outputapi.Partial](err)
			if !ok {
				t.Fatalf("error %v, want a Partial", err)
			}
			if diff := cmp.Diff(tt.want, *got, cmpopts.IgnoreFields(outputapi.Partial{}, "Err")); diff != "" {
				t.Errorf("unexpected answer (-want +got):\n%s", diff)
			}
			if (got.Err == nil) != (tt.wantErr == "") || got.Err != nil && !strings.Contains(got.Err.Error(), tt.wantErr) {
				t.Errorf("error %v, want one with %q", got.Err, tt.wantErr)
			}
		})
	}
	t.Run("an error too long to send", func(t *testing.T) {
		err := startRecorder(t, `{"big_error":1000000}`).Deliver(t.Context(), "boot", eventsTo(1))
		wantCode(t, err, codes.Unknown)
		if n := len(err.Error()); n > 2000 {
			t.Errorf("the error has %d bytes", n)
		}
	})
	t.Run("events out of order", func(t *testing.T) {
		events := eventsTo(3)
		events[2].Sequence = 2
		wantCode(t, startRecorder(t, "{}").Deliver(t.Context(), "boot", events), codes.InvalidArgument)
	})
}

func TestDeadlines(t *testing.T) {
	client := startRecorder(t, `{"wait":true}`)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	wantCode(t, client.Deliver(ctx, "boot", eventsTo(1)), codes.DeadlineExceeded)

	// The module's other half goes on.
	if _, err := client.SetBans(t.Context(), bansOf(1)); err != nil {
		t.Errorf("a ban after a delivery that took too long: %v", err)
	}
}

func TestBans(t *testing.T) {
	client := startRecorder(t, `{"fail":"nobody"}`)
	told := make(chan outputapi.BanChange)
	go func() {
		defer close(told)
		_ = client.WatchBans(t.Context(), func(c outputapi.BanChange) error {
			told <- c
			return nil
		})
	}()
	bans := bansOf(20_000) // several messages long
	bans[11_111].Origin = "nobody"

	results, err := client.SetBans(t.Context(), bans)
	if err != nil || len(results) != len(bans) {
		t.Fatalf("%d results, %v; want %d", len(results), err, len(bans))
	}
	for i, r := range results {
		if (r.Err != nil) != (i == 11_111) {
			t.Errorf("ban %d: %v", i, r.Err)
		}
	}
	if c := <-told; !c.Whole || len(c.Add) != len(bans)-1 || len(c.Remove) != 0 {
		t.Errorf("told of %d bans, whole %t; want %d", len(c.Add), c.Whole, len(bans)-1)
	}

	if _, err := client.ChangeBans(t.Context(), nil, bans[5:]); err != nil {
		t.Error(err)
	}
	c := <-told
	same := cmpopts.SortSlices(func(a, b detector.Ban) bool { return a.Source.Addr().Less(b.Source.Addr()) })
	if diff := cmp.Diff(bans[:5], c.Add, same, cmpopts.EquateComparable(bans[0].Source, bans[0].Probe)); diff != "" {
		t.Errorf("unexpected bans after lifting all but five (-want +got):\n%s", diff)
	}

	if _, err := client.SetBans(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if c := <-told; len(c.Add) != 0 || !c.Whole {
		t.Errorf("told of %d bans after stating none", len(c.Add))
	}
}

func TestResultsForOtherBans(t *testing.T) {
	client := startRecorder(t, `{"short":true}`)
	_, err := client.SetBans(t.Context(), bansOf(3))
	wantCode(t, err, codes.Internal)
}

func TestPanicsBecomeErrors(t *testing.T) {
	var logs syncBuffer
	client, process := start(t, moduleCommand(t, "recorder"), hclog.New(&hclog.LoggerOptions{Output: &logs, JSONFormat: true}))
	if err := client.Configure(t.Context(), outputapi.Configuration{Settings: json.RawMessage(`{"panic":"Deliver"}`)}); err != nil {
		t.Fatal(err)
	}
	err := client.Deliver(t.Context(), "boot", eventsTo(1))
	wantCode(t, err, codes.Internal)
	if want := "the module panicked: told to"; !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want one with %q", err, want)
	}
	if _, err := client.SetBans(t.Context(), bansOf(1)); err != nil {
		t.Errorf("a call after a panic: %v", err)
	}
	process.Kill()
	if !strings.Contains(logs.String(), "(*recorder).Deliver") {
		t.Errorf("no stack in the log: %s", logs.String())
	}

	client = startRecorder(t, `{"panic":"SetBans"}`)
	_, err = client.SetBans(t.Context(), bansOf(1))
	wantCode(t, err, codes.Internal)
}

func TestRequestsAreLimited(t *testing.T) {
	unlimited := []grpc.DialOption{grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(64 << 20))}
	client, _ := startWith(t, moduleCommand(t, "recorder"), hclog.NewNullLogger(), unlimited)
	settings := json.RawMessage(`{"panic":"` + strings.Repeat("x", outputv1.MaxMessage) + `"}`)
	wantCode(t, client.Configure(t.Context(), outputapi.Configuration{Settings: settings}), codes.ResourceExhausted)
}

func TestSignalsDoNothing(t *testing.T) {
	cmd := moduleCommand(t, "recorder")
	client, process := start(t, cmd, hclog.NewNullLogger())
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE} {
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Describe(t.Context()); err != nil {
			t.Errorf("a call after %v: %v", s, err)
		}
	}
	if process.Exited() {
		t.Error("the module ended by a signal")
	}
}

func TestLogs(t *testing.T) {
	var logs syncBuffer
	client, process := start(t, moduleCommand(t, "recorder"), hclog.New(&hclog.LoggerOptions{Output: &logs, JSONFormat: true}))
	err := client.Configure(t.Context(), outputapi.Configuration{BootID: "b1", StateDir: "/state", HostVersion: "9.9", Check: true})
	if err != nil {
		t.Fatal(err)
	}
	process.Kill() // after it, everything has been read
	for line := range strings.Lines(logs.String()) {
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatal(err)
		}
		if entry["@message"] != "configured" {
			continue
		}
		want := map[string]any{
			"@level": "info", "@message": "configured", "boot": "b1", "state": "/state", "host": "9.9", "check": true,
		}
		ignored := cmpopts.IgnoreMapEntries(func(key string, _ any) bool {
			return key == "@timestamp" || key == "timestamp" || key == "@module"
		})
		if diff := cmp.Diff(want, entry, ignored); diff != "" {
			t.Errorf("unexpected entry (-want +got):\n%s", diff)
		}
		return
	}
	t.Errorf("no entry of the module's in %s", logs.String())
}

func TestStartedByAPerson(t *testing.T) {
	tests := map[string]struct {
		module string
		args   []string
		status int
		stdout []string // parts of it
		stderr []string
	}{
		"alone": {
			module: "recorder", status: 2,
			stderr: []string{"recorder 1.2.3 is an output module of Portsnare: remembers what it is given", "/usr/local/lib/portsnare/outputs/"},
		},
		"asked for help": {module: "recorder", args: []string{"--help"}, stdout: []string{"[output."}},
		"asked to describe itself": {
			module: "recorder", args: []string{"--describe"},
			stdout: []string{`{
  "name": "recorder",
  "version": "1.2.3",
  "summary": "remembers what it is given",
  "abilities": [
    "deliver",
    "keep-bans",
    "flush",
    "watch-bans"
  ],
  "capabilities": [
    "net_admin"
  ]
}
`},
		},
		"without a name":    {module: "nameless", status: 1, stderr: []string{"no Name"}},
		"without abilities": {module: "aimless", status: 1, stderr: []string{"nothing to give it"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			cmd := moduleCommand(t, tt.module, tt.args...)
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			err := cmd.Run()
			if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
				t.Fatal(err)
			}
			if got := cmd.ProcessState.ExitCode(); got != tt.status {
				t.Errorf("exit status %d, want %d", got, tt.status)
			}
			wantParts(t, "standard output", stdout.String(), tt.stdout)
			wantParts(t, "standard error", stderr.String(), tt.stderr)
		})
	}
}

// wantParts checks that a text has all parts, and is empty if there are none.
func wantParts(t *testing.T, what, got string, parts []string) {
	t.Helper()
	if len(parts) == 0 && got != "" {
		t.Errorf("%s is %q, want nothing", what, got)
	}
	for _, part := range parts {
		if !strings.Contains(got, part) {
			t.Errorf("%s is %q, want %q in it", what, got, part)
		}
	}
}

func wantCode(t *testing.T, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("error %v has code %v, want %v", err, got, want)
	}
}
