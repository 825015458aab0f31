package outputs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/nettest"
	"github.com/portsnare/portsnare/outputs/outputapi"
)

// A running is a module that runs for a test, and what it leaves to look at.
type running struct {
	*Module
	config ModuleConfig
	logged *test.Hook
	diary  string
	stop   func() // and wait
}

// run runs a module of the given character until the test ends, and has the test
// fail if anything of it is left then.
func run(t *testing.T, config ModuleConfig) *running {
	t.Helper()
	r := prepare(t, config)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stopped := false
	r.stop = func() {
		t.Helper()
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(r.stop)
	return r
}

// prepare makes a module that does not run yet.
func prepare(t *testing.T, config ModuleConfig) *running {
	t.Helper()
	config.SocketDir = shortDir(t)
	leavesNothing(t, config.SocketDir)
	r := &running{diary: filepath.Join(t.TempDir(), "diary")}
	config.Places, config.BootID = testPlaces(t), "boot-1"
	if config.Name == "good" {
		settings := map[string]any{"diary": r.diary}
		maps.Copy(settings, config.Settings)
		config.Settings = settings
	}
	log, hook := test.NewNullLogger()
	log.SetLevel(logrus.TraceLevel)
	r.config, r.logged = config, hook
	r.Module = NewModule(config, logrus.NewEntry(log))
	return r
}

// rogueIn is the configuration of a module that breaks the protocol.
func rogueIn(mood string) ModuleConfig {
	return ModuleConfig{
		Name: "rogue", Settings: map[string]any{"mood": mood},
		DeliverWithin: 200 * time.Millisecond, BansWithin: 200 * time.Millisecond, StopWithin: 500 * time.Millisecond,
	}
}

// shortDir is a temporary directory for sockets, whose paths are bounded.
func shortDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "ps") //nolint:usetesting // its paths hold the test's name, and are too long
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// leavesNothing has the test fail if it leaves processes, goroutines,
// descriptors or sockets.
func leavesNothing(t *testing.T, sockets string) {
	t.Helper()
	// What is opened once and for all is open before we count.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	w.Close()
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	t.Cleanup(func() {
		if left := entries(t, sockets); len(left) > 0 {
			t.Errorf("directories left: %v", left)
		}
		if left := children(t); len(left) > 0 {
			t.Errorf("processes left: %v", left)
		}
		// What go-plugin started ends soon, but is not waited for.
		nettest.WaitFor(t, "the end of all goroutines", func() bool { return runtime.NumGoroutine() <= goroutines })
		nettest.WaitFor(t, "descriptors to be closed", func() bool { return len(openFiles(t)) <= len(files) })
	})
}

func entries(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range list {
		names = append(names, entry.Name())
	}
	return names
}

func openFiles(t *testing.T) []string { t.Helper(); return entries(t, "/proc/self/fd") }

// children returns the processes whose parent this one is, zombies too.
func children(t *testing.T) []string {
	t.Helper()
	var found []string
	for _, name := range entries(t, "/proc") {
		if stat, err := os.ReadFile(filepath.Join("/proc", name, "stat")); err == nil {
			_, rest, _ := strings.Cut(string(stat), ") ")
			if fields := strings.Fields(rest); len(fields) > 1 && fields[1] == strconv.Itoa(os.Getpid()) {
				found = append(found, string(stat[:60]))
			}
		}
	}
	return found
}

// alive reports whether a process exists and is no zombie.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

func (r *running) await(t *testing.T, state ModuleState) ModuleStatus {
	t.Helper()
	nettest.WaitFor(t, "the module to be "+string(state), func() bool { return r.Status().State == state })
	return r.Status()
}

// awaitRestart waits until another process than that works.
func (r *running) awaitRestart(t *testing.T, pid int) ModuleStatus {
	t.Helper()
	nettest.WaitFor(t, "another process", func() bool {
		s := r.Status()
		return s.State == ModuleRunning && s.PID != pid
	})
	return r.Status()
}

func (r *running) written(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(r.diary)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

func (r *running) entry(message string) *logrus.Entry {
	for _, e := range r.logged.AllEntries() {
		if e.Message == message {
			return e
		}
	}
	return nil
}

func TestModule(t *testing.T) {
	r := run(t, ModuleConfig{
		Name: "good", HostVersion: "1.0",
		Bans: func() []detector.Ban { return bansOf("198.51.100.1", "2001:db8::1") },
	})
	s := r.await(t, ModuleRunning)
	if s.PID == 0 || s.Description.Version != "1.2.3" || s.LastError != nil || s.Restarts != 0 {
		t.Errorf("status is %+v", s)
	}
	if err := r.Deliver(t.Context(), someEvents(256)); err != nil {
		t.Errorf("Deliver: %v", err)
	}
	results, err := r.ChangeBans(t.Context(), bansOf("198.51.100.2"), bansOf("198.51.100.1"))
	want := []Result{{Acts: []detector.Act{{Kind: detector.ActCommand, Text: "ban 198.51.100.2/32"}}}}
	if diff := cmp.Diff(want, results); diff != "" || err != nil {
		t.Errorf("ChangeBans (-want +got): %v\n%s", err, diff)
	}
	if results, err := r.SetBans(t.Context(), nil); err != nil || results != nil {
		t.Errorf("SetBans = %v, %v", results, err)
	}
	r.stop()
	diary := []string{
		"configure boot-1", "set [198.51.100.1 2001:db8::1]", "deliver 1-256",
		"add [198.51.100.2] remove [198.51.100.1]", "set []", "flush",
	}
	if diff := cmp.Diff(diary, r.written(t)); diff != "" {
		t.Errorf("the module was told (-want +got):\n%s", diff)
	}
	if s := r.Status(); s.State != ModuleStopped || s.PID != 0 {
		t.Errorf("after the stop the status is %+v", s)
	}
}

func TestModuleRestart(t *testing.T) {
	inForce := bansOf("198.51.100.1")
	sum := checksumOf(t)
	r := run(t, ModuleConfig{Name: "good", SHA256: sum, Bans: func() []detector.Ban { return inForce }})
	s := r.await(t, ModuleRunning)
	inForce = append(inForce, bansOf("198.51.100.2")...)
	if err := syscall.Kill(s.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.await(t, ModuleWaiting)
	for name, call := range map[string]func() error{
		"Deliver":    func() error { return r.Deliver(t.Context(), someEvents(1)) },
		"SetBans":    func() error { _, err := r.SetBans(t.Context(), nil); return err },
		"ChangeBans": func() error { _, err := r.ChangeBans(t.Context(), inForce, nil); return err },
	} {
		err := call()
		if away, ok := errors.AsType[*AwayError](err); !ok || away.Since.IsZero() || !strings.Contains(err.Error(), "signal: killed") {
			t.Errorf("%s of a module that is away returned %v", name, err)
		}
	}
	again := r.awaitRestart(t, s.PID)
	if again.Restarts != 1 || again.LastError == nil {
		t.Errorf("after a restart the status is %+v", again)
	}
	if err := r.Deliver(t.Context(), someEvents(1)); err != nil {
		t.Errorf("Deliver after a restart: %v", err)
	}
	want := []string{
		"configure boot-1", "set [198.51.100.1]",
		"configure boot-1", "set [198.51.100.1 198.51.100.2]", "deliver 1-1",
	}
	if diff := cmp.Diff(want, r.written(t)); diff != "" {
		t.Errorf("the module was told (-want +got):\n%s", diff)
	}
}

// What a process of a module is like.
func TestModuleProcess(t *testing.T) {
	// A descriptor that the daemon inherited and does not know of.
	inherited, err := unix.Open("/etc/hostname", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(inherited)
	t.Setenv("SECRET", "swordfish")
	r := run(t, ModuleConfig{Name: "good", Settings: map[string]any{"tell": true}})
	s := r.await(t, ModuleRunning)
	nettest.WaitFor(t, "the module's log", func() bool { return r.entry("a warning") != nil })
	e := r.entry("the process")
	field := func(name string) string { return fmt.Sprint(e.Data[name]) }

	if e.Level != logrus.InfoLevel || field("output") != "good" {
		t.Errorf("an entry has level %v and output %v", e.Level, e.Data["output"])
	}
	if w := r.entry("a warning"); w.Level != logrus.WarnLevel || w.Data["number"] != "7" {
		t.Errorf("a warning has level %v and fields %v", w.Level, w.Data)
	}
	for variable := range strings.SplitSeq(strings.Trim(field("environment"), "[]"), `","`) {
		name, _, _ := strings.Cut(strings.Trim(variable, `"`), "=")
		if !strings.HasPrefix(name, "PLUGIN_") && name != outputapi.Handshake.MagicCookieKey {
			t.Errorf("the environment has %q", name)
		}
	}
	if files := field("files"); !strings.Contains(files, `"0=/dev/null"`) || strings.Contains(files, "hostname") {
		t.Errorf("open are %s", files)
	}
	if !strings.Contains(field("state"), "NoNewPrivs:1") && !strings.Contains(field("state"), "NoNewPrivs:\t1") {
		t.Errorf("the process may gain privileges: %s", field("state"))
	}
	if field("dir") != "/" || field("mode") != "drwx------" || !strings.HasPrefix(field("sockets"), r.config.SocketDir) {
		t.Errorf("working directory %s, sockets in %s, mode %s", field("dir"), field("sockets"), field("mode"))
	}
	if field("group") != strconv.Itoa(s.PID) {
		t.Errorf("process %d is in group %s", s.PID, field("group"))
	}
	own, err := os.ReadFile("/proc/thread-self/status")
	if err != nil || strings.Contains(string(own), "NoNewPrivs:\t1") {
		t.Errorf("the daemon cannot gain privileges itself: %v", err)
	}
}

// A module gets the capabilities of its block, if the daemon has them.
func TestModuleCapabilities(t *testing.T) {
	r := prepare(t, ModuleConfig{
		Name: "good", Settings: map[string]any{"tell": true}, Required: true,
		Capabilities: []uintptr{unix.CAP_NET_ADMIN},
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	<-r.Settled()
	granted := r.Status().State == ModuleRunning
	if granted {
		nettest.WaitFor(t, "the module's log", func() bool { return r.entry("the process") != nil })
		if state := fmt.Sprint(r.entry("the process").Data["state"]); !strings.Contains(state, "CapAmb:\t0000000000001000") {
			t.Errorf("the module may do: %s", state)
		}
	}
	cancel()
	if err := <-done; granted != (os.Geteuid() == 0) || granted != (err == nil) {
		t.Errorf("user %d: Run = %v", os.Geteuid(), err)
	}
}

// Nobody but the daemon can call a module, although it can be found.
func TestModuleSocketIsForItsHost(t *testing.T) {
	r := run(t, ModuleConfig{Name: "good"})
	r.await(t, ModuleRunning)
	sockets, err := filepath.Glob(filepath.Join(r.config.SocketDir, "module-*", "plugin-dir*", "plugin*"))
	if err != nil || len(sockets) != 1 {
		t.Fatalf("sockets are %v, %v", sockets, err)
	}
	conn, err := net.Dial("unix", sockets[0])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// The client preface of HTTP/2, without TLS.
	if _, err := io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err != nil {
		t.Fatal(err)
	}
	answer, _ := io.ReadAll(conn)
	if len(answer) > 0 && answer[0] != 0x15 { // an alert of TLS
		t.Errorf("a stranger without a certificate got %q", answer)
	}
}

func TestModuleWithoutAnAbility(t *testing.T) {
	for name, want := range map[string]error{"events-only": ErrNoBans, "bans-only": nil} {
		t.Run(name, func(t *testing.T) {
			r := run(t, ModuleConfig{Name: name})
			r.await(t, ModuleRunning)
			if _, err := r.ChangeBans(t.Context(), bansOf("198.51.100.1"), nil); !errors.Is(err, want) {
				t.Errorf("ChangeBans = %v, want %v", err, want)
			}
			if _, err := r.SetBans(t.Context(), nil); !errors.Is(err, want) {
				t.Errorf("SetBans = %v, want %v", err, want)
			}
			if err := r.Deliver(t.Context(), someEvents(1)); err != nil {
				t.Errorf("Deliver = %v", err)
			}
		})
	}
}

// A ban that comes while the module is told all bans is not lost.
func TestModuleBansWhileItStarts(t *testing.T) {
	var r *running
	added := make(chan error, 1)
	known := make(chan struct{})
	config := ModuleConfig{Name: "good", Bans: func() []detector.Ban {
		<-known
		go func() {
			_, err := r.ChangeBans(context.Background(), bansOf("198.51.100.2"), nil)
			added <- err
		}()
		return bansOf("198.51.100.1")
	}}
	r = run(t, config)
	close(known)
	if err := <-added; err != nil {
		t.Errorf("ChangeBans during the start: %v", err)
	}
	want := []string{"configure boot-1", "set [198.51.100.1]", "add [198.51.100.2] remove []"}
	if diff := cmp.Diff(want, r.written(t)); diff != "" {
		t.Errorf("the module was told (-want +got):\n%s", diff)
	}
}

func TestModuleThatRefusesBansAtItsStart(t *testing.T) {
	config := rogueIn("refuses bans")
	config.Bans = func() []detector.Ban { return bansOf("198.51.100.1", "198.51.100.2") }
	r := run(t, config)
	r.await(t, ModuleRunning)
	e := r.entry("bans are not in force")
	if e == nil || e.Data["bans"] != 1 || fmt.Sprint(e.Data[logrus.ErrorKey]) != "noroom" {
		t.Errorf("the log says %v", e)
	}
}

func TestModuleThatCannotStart(t *testing.T) {
	tests := map[string]struct {
		config ModuleConfig
		want   string
	}{
		"ends at once":              {ModuleConfig{Name: "crashing"}, "exit status 2: panic: no such luck"},
		"never answers":             {ModuleConfig{Name: "silent"}, "in time"},
		"never says where it is":    {ModuleConfig{Name: "mute"}, "did not answer in time"},
		"says too much":             {ModuleConfig{Name: "babbling"}, "start "},
		"listens elsewhere":         {ModuleConfig{Name: "elsewhere"}, `the module listens on "tcp 192.0.2.1:80"`},
		"hangs in Configure":        {rogueIn("hangs in Configure"), "settings: the module did not answer in time"},
		"dies in Configure":         {rogueIn("dies in Configure"), "exit status 3: the dog ate my settings"},
		"hangs in SetBans":          {rogueIn("hangs in SetBans"), "tell it 1 bans: the module did not answer in time"},
		"finds its settings faulty": {ModuleConfig{Name: "good", Settings: map[string]any{"diray": 1}}, "diray: unknown key"},
		"is not the one expected":   {ModuleConfig{Name: "good", SHA256: make([]byte, 32)}, "its SHA-256 is"},
		"has a strange name":        {ModuleConfig{Name: "../good"}, "is no name of a module"},
		"is not there":              {ModuleConfig{Name: "slack"}, "no file slack in"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if strings.Contains(tt.want, "in time") {
				tt.config.StartWithin = 2 * time.Second
			}
			tt.config.Required = true
			tt.config.Bans = func() []detector.Ban { return bansOf("198.51.100.1") }
			r := prepare(t, tt.config)
			began := time.Now()
			err := r.Run(t.Context())
			if took := time.Since(began); took > 8*time.Second {
				t.Errorf("Run took %v", took)
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || len(err.Error()) > 1000 {
				t.Errorf("Run = %.2000v, want %q in it", err, tt.want)
			}
			select {
			case <-r.Settled():
			default:
				t.Error("nobody learns that the first start is over")
			}
		})
	}
}

func TestModuleThatBreaksTheProtocol(t *testing.T) {
	deliver := func(r *running) error { return r.Deliver(context.Background(), someEvents(4)) }
	change := func(r *running) error {
		_, err := r.ChangeBans(context.Background(), bansOf("198.51.100.1", "198.51.100.2"), nil)
		return err
	}
	tests := map[string]struct {
		call func(*running) error
		want string // nothing: it is no failure
	}{
		"answers 8 MB":              {deliver, "ResourceExhausted"},
		"fails at length":           {deliver, "Internal"},
		"fails in color":            {deliver, "[31mredalert[0m"},
		"rejects what was not sent": {deliver, "rejected event 11"},
		"accepts what was not sent": {deliver, ""},
		"answers too much":          {change, "answered 2 bans with more results"},
		"answers too little":        {change, "answered 2 bans with 1 results"},
		"never ceases to answer":    {change, "in time"},
		"hangs in ChangeBans":       {change, "in time"},
		"hangs in Deliver":          {deliver, "in time"},
	}
	for mood, tt := range tests {
		t.Run(mood, func(t *testing.T) {
			r := run(t, rogueIn(mood))
			s := r.await(t, ModuleRunning)
			if len(s.Description.Version) != 64 || s.Description.Summary != "Lies.[31m" {
				t.Errorf("a rogue describes itself as %+v", s.Description)
			}
			err := tt.call(r)
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("the call failed: %v", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("the call returned %v, want %q in it", err, tt.want)
			case err != nil && len(err.Error()) > 1100:
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
			if again := r.Status(); again.PID != s.PID {
				t.Errorf("one bad answer ended the process")
			}
		})
	}
}

// A module that does not answer is killed and started again, also one that is
// fine otherwise.
func TestModuleThatHangs(t *testing.T) {
	for _, mood := range []string{"hangs in Deliver", "stops", "hangs in ChangeBans"} {
		t.Run(mood, func(t *testing.T) {
			r := run(t, rogueIn(mood))
			s := r.await(t, ModuleRunning)
			call := func() error { return r.Deliver(t.Context(), someEvents(1)) }
			other := func() error { _, err := r.ChangeBans(t.Context(), bansOf("198.51.100.1"), nil); return err }
			if mood == "hangs in ChangeBans" {
				call, other = other, call
			}
			for n := 1; n < maxMissed; n++ {
				if err := call(); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("call %d returned %v", n, err)
				}
				if err := other(); err != nil && mood != "stops" {
					t.Errorf("the other call returned %v", err)
				}
			}
			if got := r.Status(); got.PID != s.PID && mood != "stops" {
				t.Errorf("the process was given up after %d calls", maxMissed-1)
			}
			_ = call()
			if got := r.awaitRestart(t, s.PID); !strings.Contains(got.LastError.Error(), "3 calls in a row without an answer") {
				t.Errorf("the process was ended because of %v", got.LastError)
			}
			next, err := r.reach(outputapi.Delivers)
			if err != nil {
				t.Fatal(err)
			}
			_ = call()
			next.process.mu.Lock()
			defer next.process.mu.Unlock()
			if next.process.reason != nil {
				t.Errorf("the next process is to blame for what the last one did: %v", next.process.reason)
			}
		})
	}
}

// Who waits while a module is told the bans learns that it was in vain.
func TestModuleFailsWithACallWaiting(t *testing.T) {
	config := rogueIn("hangs in SetBans")
	config.BansWithin, config.DeliverWithin = time.Second, time.Minute
	r := run(t, config)
	nettest.WaitFor(t, "the module to take calls", func() bool { return r.Status().PID != 0 })
	err := r.Deliver(t.Context(), someEvents(1))
	if _, ok := errors.AsType[*AwayError](err); !ok {
		t.Errorf("Deliver = %v", err)
	}
}

// What go-plugin would keep of whatever a module sends is not even opened.
func TestModuleBrokersNothing(t *testing.T) {
	open := func(context.Context, *grpc.StreamDesc, *grpc.ClientConn, string, ...grpc.CallOption) (grpc.ClientStream, error) {
		t.Error("the stream was opened")
		return nil, nil
	}
	_, err := refuseBroker(t.Context(), nil, nil, "/plugin.GRPCBroker/StartStream", open)
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("refuseBroker = %v", err)
	}
}

// The caller's impatience is not the module's fault.
func TestModuleOfAnImpatientCaller(t *testing.T) {
	r := run(t, rogueIn("hangs in Deliver"))
	s := r.await(t, ModuleRunning)
	for range 2 * maxMissed {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := r.Deliver(ctx, someEvents(1)); !errors.Is(err, context.Canceled) {
			t.Errorf("Deliver = %v", err)
		}
	}
	if again := r.Status(); again.PID != s.PID {
		t.Error("the process was ended")
	}
}

func TestModuleThatDiesInACall(t *testing.T) {
	r := run(t, rogueIn("dies in Deliver"))
	s := r.await(t, ModuleRunning)
	if err := r.Deliver(t.Context(), someEvents(1)); err == nil {
		t.Error("a module that died took an event")
	}
	if got := r.awaitRestart(t, s.PID); !strings.Contains(got.LastError.Error(), "exit status 4") {
		t.Errorf("it ended because of %v", got.LastError)
	}
}

func TestModuleTakesAPart(t *testing.T) {
	note := filepath.Join(t.TempDir(), "note")
	config := rogueIn("takes half")
	config.Settings["note"] = note
	r := run(t, config)
	r.await(t, ModuleRunning)
	if err := r.Deliver(t.Context(), someEvents(8)); err == nil || err.Error() != "one at a time" {
		t.Errorf("Deliver = %v", err)
	}
	if err := r.Deliver(t.Context(), someEvents(8)); err != nil {
		t.Errorf("the second Deliver: %v", err)
	}
	if first, err := os.ReadFile(note); err != nil || string(first) != "5" {
		t.Errorf("the second time the module got events from %s on, %v", first, err)
	}
	if err := r.DeliverOf(t.Context(), "boot-0", someEvents(2)); err != nil {
		t.Errorf("events of another run: %v", err)
	}
	if first, err := os.ReadFile(note); err != nil || string(first) != "1" {
		t.Errorf("of another run the module got events from %s on, %v", first, err)
	}
}

func TestModuleRejects(t *testing.T) {
	r := run(t, rogueIn("rejects one"))
	r.await(t, ModuleRunning)
	if err := r.Deliver(t.Context(), someEvents(3)); err != nil {
		t.Errorf("Deliver = %v", err)
	}
	e := r.entry("output module rejected events")
	if r.Status().Rejected != 1 || e == nil || e.Data["first"] != uint64(3) || e.Data["reason"] != "toolong" {
		t.Errorf("%d events were rejected, the log says %v", r.Status().Rejected, e)
	}
}

func TestModuleThatLogs(t *testing.T) {
	t.Run("too much", func(t *testing.T) {
		r := run(t, rogueIn("floods its log"))
		r.await(t, ModuleRunning)
		r.stop()
		logged := len(r.logged.AllEntries())
		if logged < logBurst || logged > logBurst+10*logRate {
			t.Errorf("of 20000 lines %d were logged", logged)
		}
		s, e := r.Status(), r.entry("output module logs too much, lines dropped")
		if s.LogDropped < 20_000-uint64(logged) || e == nil {
			t.Errorf("%d lines were dropped, the log says %v", s.LogDropped, e)
		}
	})
	t.Run("poison", func(t *testing.T) {
		r := run(t, rogueIn("logs poison"))
		r.await(t, ModuleRunning)
		r.stop()
		for _, e := range r.logged.AllEntries() {
			if e.Level < logrus.ErrorLevel || len(e.Message) > maxLogLine || strings.ContainsAny(e.Message, "\x1b\x00\n") {
				t.Errorf("logged at level %v: %q", e.Level, e.Message)
			}
		}
		if r.entry("1") == nil || r.entry("[2Jclear") == nil {
			t.Errorf("lines are missing from the log")
		}
	})
}

// A module that ignores Flush is ended all the same.
func TestModuleIsEndedInTime(t *testing.T) {
	for _, mood := range []string{"hangs in Flush", "stops"} {
		t.Run(mood, func(t *testing.T) {
			config := rogueIn(mood)
			r := run(t, config)
			r.await(t, ModuleRunning)
			if mood == "stops" {
				_ = r.Deliver(t.Context(), someEvents(1))
			}
			began := time.Now()
			r.stop()
			if took := time.Since(began); took > config.StopWithin+exitWithin+2*time.Second {
				t.Errorf("the stop took %v", took)
			}
			if r.entry("output module may have lost what it held") == nil {
				t.Error("the log does not say that something may be lost")
			}
		})
	}
}

// Calls under way are not cut off by the stop.
func TestModuleFinishesItsCalls(t *testing.T) {
	r := run(t, rogueIn("hangs in Deliver"))
	r.await(t, ModuleRunning)
	failed := make(chan error, 1)
	go func() { failed <- r.Deliver(t.Context(), someEvents(1)) }()
	nettest.WaitFor(t, "a call to be under way", func() bool { return len(r.events.held) == 1 })
	r.stop()
	if err := <-failed; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the call under way ended with %v", err)
	}
}

func TestModuleWithChildren(t *testing.T) {
	config := rogueIn("has children")
	note := filepath.Join(t.TempDir(), "note")
	config.Settings["note"] = note
	r := run(t, config)
	s := r.await(t, ModuleRunning)
	text, err := os.ReadFile(note)
	if err != nil {
		t.Fatal(err)
	}
	var inGroup, apart int
	if _, err := fmt.Sscan(string(text), &inGroup, &apart); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(apart, syscall.SIGKILL) }()
	began := time.Now()
	if err := syscall.Kill(s.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.await(t, ModuleWaiting)
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the end of a process with children was noticed after %v", took)
	}
	nettest.WaitFor(t, "the end of the children in the group", func() bool { return !alive(inGroup) })
	if !alive(apart) {
		t.Error("the child in a session of its own, which was to hold the module's outputs open, is gone")
	}
}

// startHost starts a daemon with one module in a group of its own and returns
// both.
func startHost(t *testing.T, diary string) (host *exec.Cmd, module int) {
	t.Helper()
	self, err := executablePath()
	if err != nil {
		t.Fatal(err)
	}
	host = &exec.Cmd{
		Path: self, Args: []string{"host"}, Stderr: os.Stderr,
		Env:         []string{"DIARY=" + diary, "SOCKETS=" + shortDir(t)},
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
	}
	out, err := host.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Start(); err != nil {
		t.Fatal(err)
	}
	module, err = strconv.Atoi(firstLine(t, out))
	if err != nil || !alive(module) {
		t.Fatalf("the host's module is process %d, %v", module, err)
	}
	return host, module
}

func TestModuleDiesWithItsHost(t *testing.T) {
	host, module := startHost(t, "")
	began := time.Now()
	if err := host.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = host.Wait()
	nettest.WaitFor(t, "the end of the module", func() bool { return !alive(module) })
	if took := time.Since(began); took > time.Second {
		t.Errorf("the module outlived its host by %v", took)
	}
}

// A signal to all processes, as a service manager or a terminal sends it, ends
// the module only once the daemon is done with it.
func TestModuleOutlivesSignals(t *testing.T) {
	diary := filepath.Join(t.TempDir(), "diary")
	host, module := startHost(t, diary)
	for _, pid := range []int{module, -host.Process.Pid} {
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	if err := host.Wait(); err != nil {
		t.Errorf("the host ended with %v", err)
	}
	text, err := os.ReadFile(diary)
	if err != nil || !strings.HasSuffix(string(text), "deliver 1-1\nflush\n") {
		t.Errorf("the module was told %q, %v", text, err)
	}
	if alive(module) {
		t.Error("the module is still there")
	}
}

func TestCheckModule(t *testing.T) {
	tests := map[string]struct {
		settings map[string]any
		want     error
	}{
		"good settings":  {map[string]any{"diary": "/nonexistent/diary"}, nil},
		"an unknown key": {map[string]any{"dairy": "/var/log/x"}, outputapi.Faults{{Key: "dairy", Text: "unknown key"}}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := prepare(t, ModuleConfig{Name: "events-only"})
			r.config.Name, r.config.Settings = "good", tt.settings
			d, err := CheckModule(t.Context(), r.config, r.log)
			faults, _ := errors.AsType[outputapi.Faults](err)
			if tt.want == nil && (err != nil || d.Name != "diary" || !slices.Contains(d.Abilities, outputapi.Flushes)) {
				t.Errorf("CheckModule = %+v, %v", d, err)
			}
			if tt.want != nil && cmp.Diff(tt.want, error(faults)) != "" {
				t.Errorf("CheckModule = %v, want %v", err, tt.want)
			}
		})
	}
}
