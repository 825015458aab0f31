package capture

import (
	"testing"
	"time"
)

func TestLogLimit(t *testing.T) {
	var l logLimit
	for _, step := range []struct {
		after time.Duration
		want  bool
	}{{0, true}, {0, false}, {warningInterval - 1, false}, {warningInterval, true}, {warningInterval + 1, false}} {
		if got := l.allow(arrival.Add(step.after)); got != step.want {
			t.Errorf("after %v: %v, want %v", step.after, got, step.want)
		}
	}
}
