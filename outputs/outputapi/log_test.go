package outputapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestLogHandler(t *testing.T) {
	tests := map[string]struct {
		log  func(*slog.Logger)
		want map[string]any // apart from the time
	}{
		"debug": {
			func(l *slog.Logger) { l.Debug("asked", "url", "http://127.0.0.1/") },
			map[string]any{"@level": "debug", "@message": "asked", "url": "http://127.0.0.1/"},
		},
		"info": {
			func(l *slog.Logger) { l.Info("sent", slog.Group("events", "count", 3)) },
			map[string]any{"@level": "info", "@message": "sent", "events": map[string]any{"count": 3.0}},
		},
		"warning": {
			func(l *slog.Logger) { l.Warn("slow", "took", time.Second) },
			map[string]any{"@level": "warn", "@message": "slow", "took": 1e9},
		},
		"error": {
			func(l *slog.Logger) { l.Error("lost", "error", errors.New("no server")) },
			map[string]any{"@level": "error", "@message": "lost", "error": "no server"},
		},
		"names that mean something else to the host": {
			func(l *slog.Logger) { l.Info("x", "@level", 5, "time", 1, "level", "high") },
			map[string]any{"@level": "info", "@message": "x", "level": "high", "time": 1.0},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var buf bytes.Buffer
			tt.log(slog.New(newLogHandler(&buf)))
			var got map[string]any
			if err := json.Unmarshal(buf.Bytes(), &got); err != nil {
				t.Fatal(err)
			}
			stamp, _ := got["@timestamp"].(string)
			if _, err := time.Parse("2006-01-02T15:04:05.000000Z07:00", stamp); err != nil {
				t.Error(err)
			}
			delete(got, "@timestamp")
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("unexpected entry (-want +got):\n%s", diff)
			}
		})
	}
}
