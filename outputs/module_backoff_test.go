package outputs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"
)

// restarts runs a module whose processes live as long as given, one after the
// other, and returns how long was waited after each. Zero is a failed start.
func restarts(t *testing.T, lives ...time.Duration) []time.Duration {
	t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	m := NewModule(ModuleConfig{Name: "fake"}, logrus.NewEntry(log))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var waited []time.Duration
	var ended time.Time
	m.live = func(ctx context.Context) (time.Duration, error) {
		if !ended.IsZero() {
			waited = append(waited, time.Since(ended))
		}
		n := len(waited)
		if n == len(lives) {
			cancel()
			return 0, ctx.Err()
		}
		time.Sleep(lives[n]) // of the bubble's clock
		ended = time.Now()
		return lives[n], errors.New("out of luck")
	}
	if err := m.Run(ctx); err != nil {
		t.Errorf("Run = %v", err)
	}
	if got := m.Status(); got.Restarts != uint64(len(lives)) || got.State != ModuleStopped {
		t.Errorf("the status is %+v", got)
	}
	return waited
}

func TestModuleBackoff(t *testing.T) {
	const s = time.Second
	tests := map[string]struct{ lives, want []time.Duration }{
		"doubles up to a minute": {
			make([]time.Duration, 9),
			[]time.Duration{1 * s, 2 * s, 4 * s, 8 * s, 16 * s, 32 * s, 60 * s, 60 * s, 60 * s},
		},
		"a short life changes nothing": {
			[]time.Duration{0, 0, 299 * s, 0},
			[]time.Duration{1 * s, 2 * s, 4 * s, 8 * s},
		},
		"five healthy minutes": {
			[]time.Duration{0, 0, 0, 300 * s, 0},
			[]time.Duration{1 * s, 2 * s, 4 * s, 1 * s, 2 * s},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				got := restarts(t, tt.lives...)
				for i, want := range tt.want {
					if got[i] > want || got[i] <= want*3/4 {
						t.Errorf("wait %d was %v, want %v or up to a quarter less", i+1, got[i], want)
					}
				}
			})
		})
	}
}

func TestModuleBackoffHasJitter(t *testing.T) {
	seen := make(map[time.Duration]bool)
	for range 20 {
		var b backoff
		seen[b.next(0)] = true
	}
	if len(seen) < 10 {
		t.Errorf("20 first waits had %d values", len(seen))
	}
}

func TestModuleEndsWhileItWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logrus.New()
		log.SetOutput(io.Discard)
		m := NewModule(ModuleConfig{Name: "fake"}, logrus.NewEntry(log))
		ctx, cancel := context.WithCancel(t.Context())
		m.live = func(context.Context) (time.Duration, error) { return 0, errors.New("out of luck") }
		done := make(chan error)
		began := time.Now()
		go func() { done <- m.Run(ctx) }()
		synctest.Wait()
		select {
		case <-m.Settled():
		default:
			t.Error("nobody learns that the first start is over")
		}
		if err := m.Deliver(ctx, someEvents(1)); err == nil || !strings.HasSuffix(err.Error(), "out of luck") {
			t.Errorf("Deliver = %v", err)
		}
		cancel()
		if err := <-done; err != nil || time.Since(began) != 0 {
			t.Errorf("Run = %v after %v", err, time.Since(began))
		}
	})
}

func TestModuleBeforeItsStart(t *testing.T) {
	m := NewModule(ModuleConfig{Name: "fake"}, logrus.NewEntry(logrus.New()))
	_, err := m.SetBans(t.Context(), nil)
	if away, ok := errors.AsType[*AwayError](err); !ok || away.Error() != "the module is not started" {
		t.Errorf("SetBans = %v", err)
	}
}

func TestModuleLogBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logrus.New()
		log.SetOutput(io.Discard)
		l := newModuleLog(logrus.NewEntry(log))
		logged := func(n int) int {
			before := l.dropped.Load()
			l.read(strings.NewReader(strings.Repeat("line\n", n)))
			return n - int(l.dropped.Load()-before)
		}
		for _, step := range []struct {
			after time.Duration
			want  int
		}{{0, logBurst}, {time.Second, logRate}, {time.Hour, logBurst}, {10 * time.Millisecond, 1}} {
			time.Sleep(step.after) // of the bubble's clock
			if got := logged(2000); got != step.want {
				t.Errorf("%v later %d lines were logged, want %d", step.after, got, step.want)
			}
		}
	})
}

// Whatever a module writes, what is logged is harmless.
func FuzzModuleLog(f *testing.F) {
	for _, seed := range []string{
		`{"@level":"info","@message":"hello","@timestamp":"2026-01-02T03:04:05.000000Z","n":1}`,
		`{"@message":1,"output":"other","":null,"@":{}}`, `{"@level":"panic","@message":"x"}`,
		"panic: oh\n\ngoroutine 1 [running]:\n", "\x1b[31m\u2028\xff", strings.Repeat("{", 10_000),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, written []byte) {
		log, hook := test.NewNullLogger()
		log.SetLevel(logrus.TraceLevel)
		l := newModuleLog(log.WithField("output", "fuzz"))
		l.read(bytes.NewReader(written))
		for _, e := range hook.AllEntries() {
			if e.Level < logrus.ErrorLevel || e.Data["output"] != "fuzz" || len(e.Message) > maxLogLine ||
				strings.ContainsFunc(e.Message, func(r rune) bool { return r < ' ' && r != '\t' }) {
				t.Errorf("%q was logged as %v %q %v", written, e.Level, e.Message, e.Data)
			}
			for key := range e.Data {
				if strings.HasPrefix(key, "@") || len(key) > maxLogKey {
					t.Errorf("%q was logged with a field %q", written, key)
				}
			}
		}
	})
}
